// Connects the parts of the page.

import { Card, verdictOf } from "./card.js";
import { asCsv, asJson, download } from "./exporting.js";
import { fetchSamples, watchIntake } from "./intake.js";
import { Queue } from "./queue.js";
import { NeedsKey, classifyBatch, describeModel, hasKey, listSamples, onServiceProblem, useKey } from "./service.js";
import { batchOf, curlFor, shown, sqlFor } from "./snippets.js";

const BATCH_IMAGES = 3;
const UNSURE = 0.9;
const get = (id) => document.getElementById(id);

const cards = [];
let chosen = null;
let problem = "";
const queue = new Queue(settle, askForKey);

let samplesNeedKey = false;
watchIntake(get("intake"), take, takeSamples);
get("filter").addEventListener("change", arrange);
get("sort").addEventListener("change", arrange);
get("heatmaps").addEventListener("change", () => cards.forEach(showHeatmap));
get("clear").addEventListener("click", clear);
get("export-csv").addEventListener("click", () => download(asCsv(answered()), "outcomes.csv", "text/csv"));
get("export-json").addEventListener("click", () => download(asJson(answered()), "outcomes.json", "application/json"));
get("send-batch").addEventListener("click", sendBatch);
get("key-form").addEventListener("submit", submitKey);
document.querySelectorAll(".copy").forEach((button) => button.addEventListener("click", () => copy(button)));
onServiceProblem((message) => {
  if (message !== problem) get("announcement").textContent = message;
  problem = message;
  summarise();
});
showModel();

function take(files) {
  if (!files.length) return;
  const items = files.map((file) => ({ file, name: file.webkitRelativePath || file.name, order: cards.length, outcome: null }));
  for (const item of items) {
    const card = new Card(item, choose);
    item.order = cards.length;
    item.card = card;
    cards.push(card);
  }
  get("results").hidden = get("same").hidden = false;
  if (!chosen) choose(cards[0]);
  arrange();
  queue.add(items);
}

async function takeSamples() {
  samplesNeedKey = false;
  try {
    take(await fetchSamples());
  } catch (error) {
    samplesNeedKey = error instanceof NeedsKey;
    if (samplesNeedKey) askForKey(error.message);
    else get("announcement").textContent = error.message;
  }
}

function settle(item, outcome) {
  if (!cards.includes(item.card)) return;
  item.outcome = outcome;
  item.card.show(outcome);
  showHeatmap(item.card);
  listFilters();
  // Sort only when all images are classified, so that cards do not move while the user reads.
  if (answered().length < cards.length) return summarise();
  arrange();
  get("announcement").textContent = get("summary").textContent;
}

function clear() {
  queue.clear();
  cards.forEach((card) => card.remove());
  cards.length = 0;
  chosen = null;
  get("results").hidden = get("same").hidden = true;
  get("batch-shown").hidden = true;
  listFilters();
}

function choose(card) {
  chosen?.choose(false);
  chosen = card;
  card.choose(true);
  get("same-name").textContent = card.item.name;
  get("same-sql").textContent = sqlFor(card.item.name);
  get("same-curl").textContent = curlFor(card.item.file.name, hasKey());
}

function answered() {
  return cards.map((card) => card.item).filter((item) => item.outcome);
}

const KINDS = {
  ":abstained": ["abstained", (outcome) => outcome.abstained],
  ":unsure": [`below ${100 * UNSURE} %`, (outcome) => outcome.label && outcome.confidence < UNSURE],
  ":failed": ["errors", (outcome) => outcome.error],
};

function listFilters() {
  const outcomes = answered().map((item) => item.outcome);
  const labels = [...new Set(outcomes.map((outcome) => outcome.label).filter(Boolean))].sort();
  const kinds = Object.entries(KINDS).filter(([, [, isOfKind]]) => outcomes.some(isOfKind));
  const options = [["", "all"], ...labels.map((label) => [label, label]), ...kinds.map(([kind, [name]]) => [kind, name])];
  const select = get("filter");
  const wanted = options.some(([value]) => value === select.value) ? select.value : "";
  select.replaceChildren(...options.map(([value, name]) => new Option(name, value, false, value === wanted)));
}

function isShown(item) {
  const wanted = get("filter").value;
  if (!wanted) return true;
  if (!item.outcome) return false;
  return KINDS[wanted] ? Boolean(KINDS[wanted][1](item.outcome)) : item.outcome.label === wanted;
}

const ORDERS = {
  order: (a, b) => a.order - b.order,
  name: (a, b) => a.name.localeCompare(b.name),
  label: (a, b) => nameOf(a).localeCompare(nameOf(b)) || a.order - b.order,
  unsure: (a, b) => sureness(a) - sureness(b) || a.order - b.order,
};

function nameOf(item) {
  return item.outcome ? verdictOf(item.outcome) : "";
}

function sureness(item) {
  if (!item.outcome || item.outcome.error) return -2;
  return item.outcome.abstained ? -1 : item.outcome.confidence;
}

function arrange() {
  const items = cards.map((card) => card.item).filter(isShown).sort(ORDERS[get("sort").value]);
  get("cards").replaceChildren(...items.map((item) => item.card.element));
  get("nothing").hidden = items.length > 0 || !cards.length;
  summarise();
}

function summarise() {
  const done = answered();
  const counts = new Map();
  for (const { outcome } of done) {
    const kind = outcome.error ? "failed" : outcome.label ?? "abstained";
    counts.set(kind, (counts.get(kind) ?? 0) + 1);
  }
  const parts = [...counts].sort(([a], [b]) => a.localeCompare(b)).map(([kind, count]) => `${count} ${kind}`);
  const counted = `${done.length} of ${cards.length}${parts.length ? `: ${parts.join(", ")}` : ""}`;
  const isWaiting = problem && done.length < cards.length;
  get("summary").textContent = isWaiting ? `${counted}. ${problem} Retrying.` : counted;
  get("progress").value = cards.length ? done.length / cards.length : 0;
}

function showHeatmap(card) {
  card.showHeatmap(get("heatmaps").checked).catch(() => null);
}

function askForKey(reason) {
  get("key-fault").textContent = hasKey() ? reason : "";
  get("key-form").hidden = false;
  get("key").focus();
}

function submitKey(event) {
  event.preventDefault();
  useKey(get("key").value);
  get("key").value = "";
  get("key-form").hidden = true;
  if (chosen) choose(chosen);
  showModel();
  if (samplesNeedKey) takeSamples();
  queue.release();
}

async function sendBatch() {
  const document = await batchOf(cards.slice(0, BATCH_IMAGES).map((card) => card.item.file));
  get("batch-shown").hidden = false;
  get("batch-request").textContent = `POST classify\nContent-Type: application/json\n\n${shown(document)}`;
  get("batch-response").textContent = "…";
  try {
    get("batch-response").textContent = shown(await classifyBatch(document));
  } catch (error) {
    get("batch-response").textContent = error.message;
  }
}

async function copy(button) {
  const text = get(button.dataset.of);
  // Browsers expose the clipboard only on https and localhost. Elsewhere, select the text for Ctrl+C.
  if (!navigator.clipboard) return getSelection().selectAllChildren(text);
  await navigator.clipboard.writeText(text.textContent);
  button.textContent = "Copied";
  setTimeout(() => (button.textContent = "Copy"), 1500);
}

async function showModel() {
  const model = await describeModel().catch(() => null);
  const hasDocs = await fetch("openapi.json", { method: "HEAD" }).then((answer) => answer.status !== 404, () => false);
  get("docs-link").hidden = !hasDocs;
  // If the list needs a key, a click on the button asks for it.
  get("samples").hidden = !(await listSamples().catch(() => [null])).length;
  if (model) get("model").textContent = `${model.name} ${model.version}: ${model.class_names.join(", ")}`;
}
