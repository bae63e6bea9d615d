"use strict";

// Put new contents into a live part.  Rows and cells that have not changed stay, so that the focus
// and a click on them are not lost.
function update(place, html) {
    const made = document.createElement("template");
    made.innerHTML = html;
    merge(place, made.content);
}

function merge(old, made) {
    const wanted = Array.from(made.childNodes);
    for (let index = 0; index < wanted.length; index += 1) {
        const next = wanted[index];
        let here = old.childNodes[index];
        if (next.id && here && here.id !== next.id) {
            // A row may have moved, because rows before it are gone.
            const found = Array.from(old.children).find((each) => each.id === next.id);
            if (found) {
                old.insertBefore(found, here);
                here = found;
            } else {
                old.insertBefore(next, here);
                continue;
            }
        }
        if (!here) {
            old.appendChild(next);
        } else if (here.isEqualNode(next)) {
            continue;
        } else if (
            here.nodeType === 1 && next.nodeType === 1 &&
            here.tagName === next.tagName && here.id === next.id
        ) {
            for (const name of here.getAttributeNames()) {
                if (!next.hasAttribute(name)) {
                    here.removeAttribute(name);
                }
            }
            for (const name of next.getAttributeNames()) {
                if (here.getAttribute(name) !== next.getAttribute(name)) {
                    here.setAttribute(name, next.getAttribute(name));
                }
            }
            merge(here, next);
        } else {
            old.replaceChild(next, here);
        }
    }
    while (old.childNodes.length > wanted.length) {
        old.lastChild.remove();
    }
}

const AGAIN = 5000;

function listen(state) {
    const source = new EventSource(state.dataset.stream);
    source.onopen = () => {
        state.textContent = "Live";
        state.classList.add("on");
    };
    source.onerror = () => {
        state.textContent = "Not live: the connection is lost";
        state.classList.remove("on");
        if (source.readyState === EventSource.CLOSED) {
            setTimeout(() => listen(state), AGAIN);
        }
    };
    for (const place of document.querySelectorAll("[id^=live-]")) {
        source.addEventListener(place.id.slice(5), (event) => update(place, event.data));
    }
}

// Send the commands of the playground without loading the page again.
async function talk(event) {
    const form = event.target;
    if (form.id !== "talk") {
        return;
    }
    event.preventDefault();
    const pressed = event.submitter;
    const fields = new URLSearchParams(new FormData(form));
    if (pressed && pressed.name) {
        fields.set(pressed.name, pressed.value);
    }
    form.setAttribute("aria-busy", "true");
    const answer = await fetch(form.getAttribute("action"), {
        method: "POST",
        body: fields,
        headers: {"X-Requested-With": "script"},
    });
    update(document.getElementById("client-holder"), await answer.text());
    form.removeAttribute("aria-busy");
    if (!pressed || !pressed.name || pressed.name === "line") {
        document.getElementById("line").value = "";
    }
    scroll();
}

function scroll() {
    for (const each of document.querySelectorAll(".transcript")) {
        each.scrollTop = each.scrollHeight;
    }
}

function acceptDrops(form) {
    const over = (event) => {
        event.preventDefault();
        form.classList.toggle("over", event.type === "dragover");
    };
    form.addEventListener("dragover", over);
    form.addEventListener("dragleave", over);
    form.addEventListener("drop", (event) => {
        over(event);
        form.querySelector("input[type=file]").files = event.dataTransfer.files;
    });
}

document.addEventListener("submit", talk);
for (const form of document.querySelectorAll(".drop")) {
    acceptDrops(form);
}
scroll();
document.documentElement.classList.add("scripted");
const state = document.querySelector("[data-stream]");
if (state) {
    listen(state);
}
