"use strict";

for (const cut of document.querySelectorAll(".cut")) {
  const show = () => cut.parentElement.style.setProperty("--cut", `${cut.value}%`);
  cut.addEventListener("input", show);
  show(); // browsers keep a control's value over a reload
}

for (const play of document.querySelectorAll(".play")) {
  const videos = [...play.closest(".sample").querySelectorAll("video")];
  play.addEventListener("click", () => {
    const start = videos[0].paused;
    for (const video of videos) {
      video.currentTime = videos[0].currentTime;
      if (start) video.play(); else video.pause();
    }
    play.textContent = start ? "Pause" : "Play";
  });
}

const valueOf = (row, column) => {
  const text = row.cells[column].textContent.trim();
  const number = parseFloat(text.replaceAll(",", ""));
  return Number.isNaN(number) || !row.cells[column].matches("td:not(.text)") ? text : number;
};

const compare = (a, b) =>
  typeof a === "number" && typeof b === "number" ? a - b
  : typeof a === typeof b ? a.localeCompare(b)
  : typeof a === "number" ? -1 : 1; // words such as "never" after all numbers

for (const heading of document.querySelectorAll(".sortable thead th")) {
  const button = document.createElement("button");
  button.type = "button";
  button.textContent = heading.textContent;
  heading.replaceChildren(button);
  button.addEventListener("click", () => {
    const body = heading.closest("table").tBodies[0];
    const sign = heading.ariaSort === "ascending" ? -1 : 1;
    for (const other of heading.parentElement.cells) other.removeAttribute("aria-sort");
    heading.ariaSort = sign === 1 ? "ascending" : "descending";
    const rows = [...body.rows];
    rows.sort((a, b) => sign * compare(valueOf(a, heading.cellIndex), valueOf(b, heading.cellIndex)));
    body.append(...rows);
  });
}
