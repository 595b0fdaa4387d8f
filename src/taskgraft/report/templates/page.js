"use strict";
(() => {
  const data = JSON.parse(document.getElementById("report-data").textContent);
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const PAPER = 680; // pixels: a printed page between its margins
  let printing = false;

  // "@blue" and "@blue:0.2" under a key that names a colour; names of classes stand under other keys
  const paint = (value, palette, colour) => {
    if (typeof value === "string" && colour && value.startsWith("@")) {
      const [name, opacity] = value.slice(1).split(":");
      const hex = palette[name];
      if (opacity === undefined) return hex;
      const part = (at) => parseInt(hex.slice(at, at + 2), 16);
      return `rgba(${part(1)},${part(3)},${part(5)},${opacity})`;
    }
    if (Array.isArray(value)) return value.map((one) => paint(one, palette, colour));
    if (value === null || typeof value !== "object") return value;
    return Object.fromEntries(
      Object.entries(value).map(([key, one]) => [key, paint(one, palette, /color/.test(key))])
    );
  };

  const draw = () => {
    const palette = dark.matches && !printing ? data.dark : data.light;
    for (const [key, spec] of Object.entries(data.plots)) {
      const place = document.getElementById(key);
      const layout = paint(spec.layout, palette, false);
      if (printing) {
        layout.autosize = false;
        const small = place.closest(".small");
        layout.width = small ? PAPER / 2 - 12 : PAPER;
        layout.height = small ? 250 : place.closest(".large") ? 620 : place.closest(".square") ? 460 : 275;
      }
      Plotly.react(place, paint(spec.data, palette, false), layout, {
        responsive: true,
        displaylogo: false,
        displayModeBar: matchMedia("(hover: none)").matches ? false : "hover",
        modeBarButtonsToRemove: ["select2d", "lasso2d", "autoScale2d"],
      }).then(hush);
    }
  };

  // A screen reader gets what a plot is called, and its numbers from the table below; the letters and buttons in it
  // would be noise to it, and to the keyboard.
  const hush = (place) => {
    place.querySelectorAll(".main-svg, .modebar-container").forEach((one) => one.setAttribute("aria-hidden", "true"));
    place.querySelectorAll(".modebar-btn").forEach((one) => (one.tabIndex = -1));
  };

  // a button beside every command, where the browser lets a page copy
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

  const print = (now) => () => {
    printing = now;
    draw();
  };
  draw();
  if (navigator.clipboard) document.querySelectorAll("pre").forEach(offer);
  dark.addEventListener("change", draw);
  addEventListener("beforeprint", print(true));
  addEventListener("afterprint", print(false));
})();
