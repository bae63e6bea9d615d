"use strict";

// Put new contents into a live part.  Keep the rows and cells that have not changed, so that the
// focus and a click on them are not lost.
function update(place, html) {
    const made = document.createElement("template");
    made.innerHTML = html;
    if (versionOf(made.content) >= versionOf(place)) {
        merge(place, made.content);
    }
}

// Find the version of a part's contents.  An answer with old contents may arrive after an event
// with newer contents.
function versionOf(place) {
    const found = place.querySelector("[data-version]");
    return found ? Number(found.dataset.version) : 0;
}

function merge(old, made) {
    const wanted = Array.from(made.childNodes);
    const names = new Set(wanted.map((each) => each.id).filter(Boolean));
    for (const [index, next] of wanted.entries()) {
        let here = old.childNodes[index];
        if (next.id) {
            const found = Array.from(old.children).find((each) => each.id === next.id);
            // Remove the elements in front of the found one that the new contents do not have.  If
            // the found element were moved instead, it would lose the focus.
            while (found && here !== found && !names.has(here.id)) {
                here.remove();
                here = old.childNodes[index];
            }
            if (found && here !== found) {
                old.insertBefore(found, here);
                here = found;
            }
        }
        if (!here) {
            old.appendChild(next);
        } else if (here.nodeName === next.nodeName && (here.id || "") === (next.id || "")) {
            if (!here.isEqualNode(next)) {
                change(here, next);
            }
        } else if (here.id && names.has(here.id)) {
            old.insertBefore(next, here);
        } else {
            old.replaceChild(next, here);
        }
    }
    while (old.childNodes.length > wanted.length) {
        old.lastChild.remove();
    }
}

function change(here, next) {
    if (here.nodeType !== Node.ELEMENT_NODE) {
        here.nodeValue = next.nodeValue;
        return;
    }
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
        source.addEventListener(place.id.slice(5), (event) => {
            update(place, event.data);
            follow(place);
        });
    }
}

// Send the commands of the playground one after the other, without loading the page again.
let sending = Promise.resolve();

function talk(event) {
    const form = event.target;
    if (form.id !== "talk") {
        return;
    }
    event.preventDefault();
    const pressed = event.submitter;
    const fields = new URLSearchParams(new FormData(form));
    if (pressed && pressed.name) {
        fields.set(pressed.name, pressed.value);
    } else {
        document.getElementById("line").value = "";
    }
    sending = sending.then(() => send(form, fields));
}

async function send(form, fields) {
    const place = document.getElementById("live-client");
    try {
        const answer = await fetch(form.getAttribute("action"), {
            method: "POST",
            body: fields,
            headers: {"X-Requested-With": "script"},
        });
        if (!answer.ok) {
            // Load the page again.  For example, the form has an old token if the service has been
            // started again.
            location.reload();
            return;
        }
        update(place, await answer.text());
        follow(place);
    } catch (error) {
        document.getElementById("state").textContent = "The service does not answer";
    }
}

// Scroll each conversation to its end.
function follow(place) {
    for (const each of place.querySelectorAll(".transcript")) {
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
follow(document);
document.documentElement.classList.add("scripted");
const state = document.querySelector("[data-stream]");
if (state) {
    listen(state);
}
