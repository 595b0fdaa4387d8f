"use strict";
// folded sections open for a link to what is inside and for printing, in browsers that do not do so by themselves
(() => {
  const openTarget = () => {
    let id = location.hash.slice(1);
    try {
      id = decodeURIComponent(id);
    } catch {} // not encoded
    const fold = id && document.getElementById(id)?.closest("details:not([open])");
    if (!fold) return;
    fold.open = true;
    document.getElementById(id).scrollIntoView();
  };
  addEventListener("hashchange", openTarget);
  openTarget();
  let opened = [];
  addEventListener("beforeprint", () => {
    opened = [...document.querySelectorAll("details.folded:not([open])")];
    opened.forEach((fold) => (fold.open = true));
  });
  addEventListener("afterprint", () => opened.forEach((fold) => (fold.open = false)));
})();
// a copy button beside every command, where the browser allows it
(() => {
  const addButton = (block) => {
    const button = document.createElement("button");
    const setText = (text) => (button.textContent = text);
    button.type = "button";
    button.className = "copy";
    button.setAttribute("aria-live", "polite");
    setText("Copy");
    button.addEventListener("click", () =>
      navigator.clipboard.writeText(block.querySelector("code").textContent).then(
        () => setText("Copied"),
        () => setText("Not allowed")
      )
    );
    block.classList.add("copied");
    block.append(button);
  };
  if (navigator.clipboard) document.querySelectorAll("pre").forEach(addButton);
})();
