"use strict";
for (const svg of document.querySelectorAll("svg[data-points]")) {
  const points = JSON.parse(svg.dataset.points);
  const out = svg.closest("figure").querySelector("output");
  const cursor = svg.querySelector(".cursor");
  const spot = svg.querySelector(".spot");
  const show = (event) => {
    const box = svg.getBoundingClientRect();
    const x = ((event.clientX - box.left) / box.width) * svg.viewBox.baseVal.width;
    let best = points[0];
    for (const point of points) {
      if (Math.abs(point[0] - x) < Math.abs(best[0] - x)) best = point;
    }
    cursor.setAttribute("x1", best[0]);
    cursor.setAttribute("x2", best[0]);
    spot.setAttribute("cx", best[0]);
    spot.setAttribute("cy", best[1]);
    svg.classList.add("on");
    out.classList.add("live");
    out.textContent = `step ${best[2]}: ${best[3]}`;
  };
  const hide = () => {
    svg.classList.remove("on");
    out.classList.remove("live");
    out.textContent = out.dataset.last;
  };
  svg.addEventListener("pointermove", show);
  svg.addEventListener("pointerdown", show);
  svg.addEventListener("pointerleave", hide);
}
const button = document.getElementById("theme");
button.hidden = false;
button.addEventListener("click", () => {
  const root = document.documentElement;
  const dark = root.dataset.theme
    ? root.dataset.theme === "dark"
    : matchMedia("(prefers-color-scheme: dark)").matches;
  root.dataset.theme = dark ? "light" : "dark";
});
