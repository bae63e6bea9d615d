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

document.documentElement.classList.add("scripted");
const state = document.querySelector("[data-stream]");
if (state) {
    listen(state);
}
