// Collects files: picked, photographed, dropped (including folders) or pasted.
// Passes on entries {file, name}, and the kinds of the files in folders that are no images.

import { kindByName } from "./explain.js";

const SUFFIXES = /\.(bmp|png|jpe?g|tiff?|webp)$/i;
const FILES_AT_ONCE = 50;
const byName = new Intl.Collator("en", { numeric: true }).compare;

export function watchIntake(element, take) {
  const pass = (entries) => take(...sorted(entries));
  for (const input of element.querySelectorAll("input[type=file]")) {
    input.addEventListener("change", () => {
      pass([...input.files].map((file) => ({ file, name: file.webkitRelativePath || file.name, isInFolder: input.webkitdirectory })));
      input.value = "";
    });
  }
  document.addEventListener("paste", (event) => pass(plain(event.clipboardData?.files ?? [])));
  watchDrops(element, pass);
}

// Natural order: 2.png before 10.png.
export function compareNames(a, b) {
  return byName(a.name, b.name);
}

function sorted(entries) {
  const isImage = ({ file, isInFolder }) => !isInFolder || (SUFFIXES.test(file.name) && !file.name.startsWith("."));
  const skipped = entries.filter((entry) => !isImage(entry)).map(({ file }) => kindByName(file.name));
  return [entries.filter(isImage).sort(compareNames), skipped];
}

function plain(files) {
  return [...files].map((file) => ({ file, name: file.name, isInFolder: false }));
}

function watchDrops(element, pass) {
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
    pass(await droppedFiles(event.dataTransfer));
  });
}

async function droppedFiles(transfer) {
  // The browser clears the drop data at the first await, so read the entries before it.
  const entries = [...transfer.items].map((item) => item.webkitGetAsEntry?.()).filter(Boolean);
  if (!entries.some((entry) => entry.isDirectory)) return plain(transfer.files);
  return filesAmong(entries, false);
}

// Folders in turn, and few files at a time: the browser makes all files that are asked for in one task,
// which would block the page. Skips what cannot be read.
async function filesAmong(entries, isInFolder) {
  const read = (entry) =>
    new Promise((done) => entry.file((file) => done([{ file, name: entry.fullPath.slice(1), isInFolder }]), () => done([])));
  const [files, found] = [entries.filter(({ isFile }) => isFile), []];
  while (files.length) found.push(...(await Promise.all(files.splice(0, FILES_AT_ONCE).map(read))).flat());
  for (const folder of entries.filter(({ isDirectory }) => isDirectory)) {
    const reader = folder.createReader();
    for (let some = await entriesOf(reader); some.length; some = await entriesOf(reader)) {
      for (const file of await filesAmong(some, true)) found.push(file);
    }
  }
  return found;
}

function entriesOf(reader) {
  return new Promise((done) => reader.readEntries(done, () => done([])));
}
