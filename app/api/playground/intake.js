// Collects files: picked, dropped (including folders), pasted, or the samples.

import { fetchSample, listSamples } from "./service.js";

const SUFFIXES = /\.(bmp|png|jpe?g|tiff?|webp)$/i;

export function watchIntake(element, take, takeSamples) {
  for (const input of element.querySelectorAll("input[type=file]")) {
    input.addEventListener("change", () => {
      take(input.webkitdirectory ? onlyImages(input.files) : [...input.files]);
      input.value = "";
    });
  }
  element.querySelector("#samples").addEventListener("click", takeSamples);
  document.addEventListener("paste", (event) => {
    const files = [...(event.clipboardData?.files ?? [])];
    if (files.length) take(files);
  });
  watchDrops(element, take);
}

function watchDrops(element, take) {
  let depth = 0;
  const mark = (change) => {
    depth = Math.max(0, depth + change);
    element.classList.toggle("over", depth > 0);
  };
  document.addEventListener("dragenter", () => mark(1));
  document.addEventListener("dragleave", () => mark(-1));
  document.addEventListener("dragover", (event) => event.preventDefault());
  document.addEventListener("drop", async (event) => {
    event.preventDefault();
    mark(-depth);
    take(await droppedFiles(event.dataTransfer));
  });
}

async function droppedFiles(transfer) {
  // The browser clears the drop data at the first await, so read the entries before it.
  const entries = [...transfer.items].map((item) => item.webkitGetAsEntry?.()).filter(Boolean);
  if (!entries.some((entry) => entry.isDirectory)) return [...transfer.files];
  const found = await Promise.all(entries.map(filesBelow));
  return onlyImages(found.flat());
}

async function filesBelow(entry) {
  // Skip an unreadable entry without failing the others.
  if (entry.isFile) return new Promise((done) => entry.file((file) => done([file]), () => done([])));
  const reader = entry.createReader();
  const found = [];
  for (;;) {
    const some = await new Promise((done) => reader.readEntries(done, () => done([])));
    if (!some.length) break;
    found.push(...some);
  }
  return (await Promise.all(found.map(filesBelow))).flat();
}

function onlyImages(files) {
  return [...files].filter((file) => SUFFIXES.test(file.name) && !file.name.startsWith("."));
}

export async function fetchSamples() {
  return Promise.all((await listSamples()).map(fetchSample));
}
