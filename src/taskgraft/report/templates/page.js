"use strict";
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
