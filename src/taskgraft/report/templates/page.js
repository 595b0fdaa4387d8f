"use strict";
// a button beside every command, where the browser lets a page copy
(() => {
  const offer = (place) => {
    const button = document.createElement("button");
    const say = (word) => (button.textContent = word);
    button.type = "button";
    button.className = "copy";
    button.setAttribute("aria-live", "polite");
    say("Copy");
    button.addEventListener("click", () =>
      navigator.clipboard.writeText(place.querySelector("code").textContent).then(
        () => say("Copied"),
        () => say("Not allowed")
      )
    );
    place.classList.add("copied");
    place.append(button);
  };
  if (navigator.clipboard) document.querySelectorAll("pre").forEach(offer);
})();
