// The large view of one image: a dialog with the whole image, its evidence, and how to get the same answer elsewhere.

import { clearCanvas, drawEvidence } from "./evidence.js";
import { barOf, kindOf, mark, markTruth, percent, ranked, reasonOf, urlOf, verdictOf } from "./outcome.js";
import { hasKey } from "./service.js";
import { curlFor, pythonFor, sqlFor } from "./snippets.js";

const HEATMAP_SIDE = 1200;
const get = (id) => document.getElementById(id);

let current = null;

// `neighbours()` returns the items in the order of the page; `opened(item)` loads the evidence; `closed(item)` gets the last one.
export function watchView(neighbours, opened, closed) {
  const dialog = get("view");
  const step = (by) => {
    const items = neighbours();
    const next = items[items.indexOf(current) + by];
    if (next) open(next);
  };
  const open = (item) => {
    current = item;
    history.replaceState(null, "", linkTo(item));
    if (!dialog.open) dialog.showModal();
    const items = neighbours();
    const at = items.indexOf(item);
    get("view-place").textContent = `${at + 1} of ${items.length}`;
    get("view-previous").disabled = at <= 0;
    get("view-next").disabled = at < 0 || at === items.length - 1;
    showImage(item);
    refreshView(item);
    opened(item);
  };
  get("view-previous").addEventListener("click", () => step(-1));
  get("view-next").addEventListener("click", () => step(1));
  get("view-close").addEventListener("click", () => dialog.close());
  get("view-opacity").addEventListener("input", fade);
  get("view-image").addEventListener("error", () => showPreview(false));
  get("view-image").addEventListener("load", () => showSize(current));
  // On the document: a button that becomes disabled loses the focus, and then the dialog gets no keys.
  document.addEventListener("keydown", (event) => {
    if (!dialog.open || event.target.type === "range" || event.altKey || event.ctrlKey || event.metaKey) return;
    const by = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (!by) return;
    event.preventDefault();
    step(by);
  });
  dialog.addEventListener("click", (event) => event.target === dialog && dialog.close());
  dialog.addEventListener("close", () => {
    history.replaceState(null, "", location.pathname + location.search);
    get("view-image").removeAttribute("src");
    clearCanvas(get("view-heat"), get("view-box"));
    closed(current);
    current = null;
  });
  return open;
}

// A link can name an image, not hold it: it opens a sample, or the image once the same files are chosen.
export function linkTo(item) {
  return `#image=${encodeURIComponent(item.name)}`;
}

export function nameInLink() {
  try {
    return decodeURIComponent(/^#image=(.+)/.exec(location.hash)?.[1] ?? "");
  } catch {
    return "";
  }
}

// Shows an answer that arrives while its image is open.
export function refreshView(item) {
  if (item !== current) return;
  const { outcome } = item;
  mark(get("view"), kindOf(outcome));
  get("view-verdict").textContent = verdictOf(item);
  get("view-why").textContent = reasonOf(item);
  markTruth(get("view-truth"), item);
  const top = outcome?.label ?? outcome?.nearest_label;
  get("view-classes").replaceChildren(...ranked(outcome).map((pair) => barOf(pair, top)));
  showFacts(item);
  showEvidence(item);
}

function showImage(item) {
  get("view-name").textContent = item.file.name;
  showPreview(true);
  clearCanvas(get("view-heat"), get("view-box"));
  get("view-image").src = urlOf(item);
  get("view-image").alt = item.name;
  get("view-sql").textContent = sqlFor(item.name);
  get("view-curl").textContent = curlFor(item.name, hasKey());
  get("view-python").textContent = pythonFor(item.name, hasKey());
}

function showPreview(isShown) {
  get("view-image").hidden = !isShown;
  get("view-no-picture").hidden = isShown;
}

async function showEvidence(item) {
  const evidence = item.outcome?.evidence;
  get("view-evidence").hidden = !evidence;
  get("view-no-evidence").textContent = evidence || !item.outcome || item.outcome.error ? "" : item.hasAsked ? "This network shows no evidence." : "Loading the evidence …";
  if (!evidence) return;
  fade();
  await drawEvidence(evidence, get("view-image"), HEATMAP_SIDE, get("view-heat"), get("view-box")).catch(() => null);
  if (item !== current) showEvidence(current ?? {});
}

function fade() {
  get("view-heat").style.opacity = get("view-opacity").value / 100;
}

function showFacts(item) {
  const { outcome, file } = item;
  showList({
    File: `${file.name}, ${sizeOf(file)}`,
    Folder: item.name.includes("/") && item.name.slice(0, item.name.lastIndexOf("/")),
    Network: outcome?.model && `${outcome.model.name} ${outcome.model.version}`,
    Box: outcome?.evidence?.box && `x ${outcome.evidence.box[0]} to ${outcome.evidence.box[2]}, y ${outcome.evidence.box[1]} to ${outcome.evidence.box[3]} pixels`,
    Code: outcome?.error?.code,
    Message: outcome?.error?.message,
    Nearest: outcome?.abstained && `${outcome.nearest_label} ${percent(outcome.nearest_confidence)}`,
  });
  showSize(item);
}

function showList(facts) {
  const rows = Object.entries(facts).filter(([, value]) => value);
  get("view-facts").replaceChildren(...rows.flatMap(([name, value]) => {
    const [term, detail] = [document.createElement("dt"), document.createElement("dd")];
    term.textContent = name;
    detail.textContent = value;
    return [term, detail];
  }));
}

function showSize(item) {
  const { naturalWidth, naturalHeight } = get("view-image");
  get("view-size").textContent = item && naturalWidth ? `${naturalWidth} × ${naturalHeight} pixels` : "";
}

function sizeOf({ size }) {
  if (size < 1000) return `${size} bytes`;
  return size < 1e6 ? `${(size / 1e3).toFixed(1)} kB` : `${(size / 1e6).toFixed(1)} MB`;
}
