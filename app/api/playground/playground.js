// Connects the parts of the page.

import { describeSkipped, explain } from "./explain.js";
import { asCsv, asJson, asParquetFile, download } from "./exporting.js";
import { compareNames, watchIntake } from "./intake.js";
import { CardList } from "./list.js";
import { verdictOf } from "./outcome.js";
import { describe, listFilters, passes, showDistribution, showTruth, truthsFrom } from "./overview.js";
import { Queue } from "./queue.js";
import { NeedsKey, classifyBatch, describeModel, fetchSample, hasKey, listSamples, onServiceProblem, useKey } from "./service.js";
import { batchOf, shown as shortened, sqlForAll } from "./snippets.js";
import { linkTo, nameInLink, refreshView, watchView } from "./view.js";

const BATCH_IMAGES = 3;
const MOST_THUMBNAILS = 12;
const REFRESH_MS = 200;
const get = (id) => document.getElementById(id);

let items = [];
let truthOf = truthsFrom([]);
let samples = [];
let samplesNeedKey = false;
let linked = nameInLink();
let problem = "";
let refreshing = null;

const answers = new Queue({ batchFiles: 32, atOnce: 4, withEvidence: false, answered: settle, needsKey: askForKey });
const evidence = new Queue({ batchFiles: 4, atOnce: 2, withEvidence: true, answered: settleEvidence, needsKey: askForKey });
const list = new CardList(get("cards"), { open: (item) => open(item), seen: showEvidence });
const open = watchView(
  () => list.items,
  (item) => {
    get("view-link").href = linkTo(item);
    get("view-link").textContent = get("view-link").href;
    loadEvidence(item, true);
  },
  (item) => list.reveal(item),
);

watchIntake(get("intake"), take);
on("samples", "click", takeSamples);
on("filter", "change", arrange);
on("sort", "change", arrange);
on("heatmaps", "change", () => items.filter(({ card }) => card).forEach(showEvidence));
on("clear", "click", clear);
on("export-csv", "click", () => exportAs(asCsv, "outcomes.csv", "text/csv"));
on("export-json", "click", () => exportAs(asJson, "outcomes.json", "application/json"));
on("export-parquet", "click", () => exportAs(asParquetFile, "outcomes.parquet", "application/vnd.apache.parquet"));
on("print", "click", () => list.print());
on("open-sql", "click", openSql);
on("stage-close", "click", () => get("stage").close());
on("send-batch", "click", sendBatch);
on("key-form", "submit", submitKey);
document.querySelectorAll(".copy").forEach((button) => button.addEventListener("click", () => copy(button)));
addEventListener("hashchange", followLink);
onServiceProblem((message) => {
  if (message !== problem) get("announcement").textContent = message;
  problem = message;
  refreshSoon();
});
start();

function on(id, event, react) {
  get(id).addEventListener(event, react);
}

async function start() {
  await showModel();
  followLink();
}

function take(entries, skipped = []) {
  const known = new Map(items.map((item) => [item.name, item]));
  const twins = new Map(entries.map((entry) => [entry, twinOf(entry, known)]));
  const fresh = entries.filter((entry) => !twins.get(entry) || twins.get(entry).outcome?.error);
  const repeated = entries.length - fresh.length;
  const notices = [skipped.length && describeSkipped(skipped), repeated && `${repeated} shown already.`].filter(Boolean);
  if (notices.length) get("notice").textContent = notices.join(" ");
  if (!fresh.length) return;
  const failed = new Set(fresh.map((entry) => twins.get(entry)));
  items = items.filter((item) => !failed.has(item));
  const added = fresh.map(({ file, name }, at) => ({
    file,
    name,
    truth: truthOf(name),
    order: items.length + at,
    outcome: null,
  }));
  items = [...items, ...added];
  get("results").hidden = get("batch").hidden = false;
  arrange();
  answers.add(added);
  const wanted = added.find(({ name }) => name === linked);
  if (!wanted) return;
  linked = "";
  open(wanted);
}

// The item of the same file, chosen before. Asks for the size only then: each is a call to another process.
function twinOf({ name, file }, known) {
  const item = known.get(name);
  return item && item.file.size === file.size && item.file.lastModified === file.lastModified ? item : null;
}

async function takeSamples() {
  samplesNeedKey = false;
  try {
    if (!samples.length) await showSamples();
    take(samples);
  } catch (error) {
    samplesNeedKey = error instanceof NeedsKey;
    if (samplesNeedKey) askForKey(error.message);
    else get("announcement").textContent = error.message;
  }
}

async function settle(item, outcome) {
  if (!item.outcome?.evidence) item.outcome = outcome;
  if (outcome.error) item.words = await explain(outcome.error, item.file);
  showOutcome(item);
}

function settleEvidence(item, outcome) {
  item.isLoaded = true;
  if (!outcome.error) item.outcome = outcome;
  item.loaded?.();
  showOutcome(item);
}

function showOutcome(item) {
  item.card?.show();
  if (item.card) showEvidence(item);
  refreshView(item);
  // Sort only when all images are classified, so that cards do not move while the user reads.
  if (answered().length < items.length || refreshing) return refreshSoon();
  finish();
}

function finish() {
  refresh();
  arrange();
  get("announcement").textContent = get("summary").textContent;
}

function refreshSoon() {
  refreshing ??= setTimeout(() => {
    refreshing = null;
    if (items.length && answered().length === items.length) finish();
    else refresh();
  }, REFRESH_MS);
}

function refresh() {
  listFilters(items);
  showDistribution(items, toggleFilter);
  showTruth(items);
  const isWaiting = problem && answered().length < items.length;
  get("summary").textContent = isWaiting ? `${describe(items)}. ${problem} Retrying.` : describe(items);
  get("progress").value = items.length ? answered().length / items.length : 0;
}

function toggleFilter(filter) {
  get("filter").value = get("filter").value === filter ? "" : filter;
  arrange();
  showDistribution(items, toggleFilter);
}

function clear() {
  answers.clear();
  evidence.clear();
  items.filter(({ url }) => url).forEach(({ url }) => URL.revokeObjectURL(url));
  items = [];
  get("results").hidden = get("batch").hidden = get("batch-shown").hidden = true;
  get("notice").textContent = "";
  arrange();
  refresh();
}

function answered() {
  return items.filter((item) => item.outcome);
}

const ORDERS = {
  name: compareNames,
  label: (a, b) => verdictOf(a).localeCompare(verdictOf(b)) || a.order - b.order,
  unsure: (a, b) => sureness(a) - sureness(b) || a.order - b.order,
};

function sureness({ outcome }) {
  if (!outcome || outcome.error) return -2;
  return outcome.abstained ? -1 : outcome.confidence;
}

function arrange() {
  const filter = get("filter").value;
  const next = items.filter((item) => passes(item, filter));
  list.show(get("sort").value === "order" ? next : next.sort(ORDERS[get("sort").value]));
  get("shown").textContent = next.length < items.length ? `${next.length} of ${items.length} shown` : "";
  get("nothing").hidden = next.length > 0 || !items.length;
}

// Evidence is loaded for the cards on the screen, and not for those that leave it before their turn.
function showEvidence(item) {
  const isWanted = item.card && get("heatmaps").checked;
  if (isWanted) loadEvidence(item);
  else if (!item.loaded && evidence.drop(item)) item.hasAsked = false;
  item.card?.showEvidence(isWanted).catch(() => null);
}

function loadEvidence(item, isUrgent = false) {
  if (item.isLoaded || !item.outcome || item.outcome.error) return;
  if (item.hasAsked && !(isUrgent && evidence.drop(item))) return;
  item.hasAsked = true;
  evidence.add([item], isUrgent);
}

// What passes the filter, in the chosen order.
async function exportAs(format, name, type) {
  const listed = list.items.filter((item) => item.outcome);
  if (get("boxes").checked) {
    get("notice").textContent = "Loading the boxes …";
    await Promise.all(listed.map(waitForEvidence));
    get("notice").textContent = "";
  }
  download(format(listed), name, type);
}

function waitForEvidence(item) {
  if (item.isLoaded || item.outcome.error) return null;
  return new Promise((done) => {
    item.loaded = done;
    loadEvidence(item);
  });
}

function openSql() {
  get("stage-sql").textContent = sqlForAll(items.map(({ name }) => name));
  get("stage").showModal();
}

function followLink() {
  linked = nameInLink();
  if (!linked) return;
  const item = items.find(({ name }) => name === linked);
  const sample = samples.find(({ name }) => name === linked);
  if (item) open(item);
  else if (sample) take([sample]);
  else get("notice").textContent = `The link shows ${linked}. Choose this image or its folder to see it: the service does not store images.`;
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
  showModel();
  if (samplesNeedKey) takeSamples();
  answers.release();
  evidence.release();
}

async function sendBatch() {
  const document = await batchOf(items.slice(0, BATCH_IMAGES).map(({ file }) => file));
  get("batch-shown").hidden = false;
  get("batch-request").textContent = `POST classify\nContent-Type: application/json\n\n${shortened(document)}`;
  get("batch-response").textContent = "…";
  try {
    get("batch-response").textContent = shortened(await classifyBatch(document));
  } catch (error) {
    get("batch-response").textContent = error.message;
  }
}

async function copy(button) {
  const text = get(button.dataset.of);
  // Browsers expose the clipboard only on https and localhost. Elsewhere, select the text for Ctrl+C.
  if (!navigator.clipboard) return getSelection().selectAllChildren(text);
  await navigator.clipboard.writeText(text.textContent);
  const { textContent } = button;
  button.textContent = "Copied";
  setTimeout(() => (button.textContent = textContent), 1500);
}

async function showModel() {
  const model = await describeModel().catch(() => null);
  const hasDocs = await fetch("openapi.json", { method: "HEAD" }).then((answer) => answer.status !== 404, () => false);
  get("docs-link").hidden = !hasDocs;
  await showSamples().catch(() => (get("samples").hidden = false)); // a click on the button asks for the key
  if (!model) return;
  const classes = model.class_names;
  truthOf = truthsFrom(classes);
  get("model").textContent = `${model.name} ${model.version}`;
  get("what").textContent = `This page says which of ${classes.length} classes an image shows: ${classes.join(", ")}. It gives the answers of the SQL function ext_classify in Snowflake.`;
  for (const item of items) item.truth = truthOf(item.name);
  items.forEach(({ card }) => card?.show());
}

async function showSamples() {
  samples = (await Promise.all((await listSamples()).map(fetchSample))).map((file) => ({ file, name: file.name }));
  get("samples").hidden = !samples.length;
  get("thumbnails").replaceChildren(...samples.slice(0, MOST_THUMBNAILS).map(thumbnailOf));
}

function thumbnailOf(sample) {
  const entry = get("thumbnail").content.firstElementChild.cloneNode(true);
  entry.querySelector("img").src = URL.createObjectURL(sample.file);
  entry.querySelector("span").textContent = sample.name;
  entry.querySelector("button").addEventListener("click", () => take([sample]));
  return entry;
}
