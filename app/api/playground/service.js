// Client of the service. Retries while the service is overloaded or restarts.

const RETRYABLE = new Set([429, 502, 503, 504]);
const LONGEST_PAUSE_MS = 8000;
const PATIENCE_MS = 120000;

let key = "";
let reportProblem = () => {};

// Sets a callback that receives the current problem of the service, and "" once the service answers.
export function onServiceProblem(callback) {
  reportProblem = callback;
}

export class NeedsKey extends Error {}

export class Cancelled extends Error {}

// Stored in memory only: it is lost when the page is closed.
export function useKey(given) {
  key = given.trim();
}

export function hasKey() {
  return key !== "";
}

export class Refused extends Error {
  constructor(code, message, isRetryable = false) {
    super(message);
    this.code = code;
    this.isRetryable = isRetryable;
  }
}

// One outcome a file, in their order. The browser reads the files while it sends them: bytes that this page
// reads pass through its process twice, which takes a third of the time.
export async function classifyFiles(files, withEvidence, signal) {
  const form = new FormData();
  files.forEach((file, number) => form.append("image", file, String(number)));
  const answer = await post(withEvidence ? "classify?evidence=true" : "classify", form, null, signal);
  const { results } = await answer.json();
  return results.map(({ filename, ...outcome }) => outcome);
}

export async function classifyBatch(document) {
  const answer = await post("classify", JSON.stringify(document), "application/json");
  return answer.json();
}

export async function describeModel() {
  const answer = await fetch("model", { headers: credentials() });
  return answer.ok ? answer.json() : null;
}

// The names of the network's sample images; empty if it has none.
export async function listSamples() {
  return (await fetchPart("playground/samples")).json();
}

export async function fetchSample(name) {
  const content = await (await fetchPart(`playground/samples/${encodeURIComponent(name)}`)).blob();
  return new File([content], name, { type: content.type });
}

async function fetchPart(path) {
  const answer = await fetch(path, { headers: credentials() });
  if (answer.ok) return answer;
  const failure = await describeFailure(answer);
  throw answer.status === 401 ? new NeedsKey(failure.message) : failure;
}

// A JWT has three parts separated by dots; any other key is an API key.
function credentials() {
  if (!key) return {};
  if (/[^\x21-\x7e]/.test(key)) throw new NeedsKey("A key has only ASCII letters, digits and signs. Received: others.");
  return key.split(".").length === 3 ? { Authorization: `Bearer ${key}` } : { "X-API-Key": key };
}

async function post(path, body, type, signal) {
  const giveUpAt = performance.now() + PATIENCE_MS;
  for (let attempt = 0; ; attempt++) {
    let failure;
    let pause = Math.min(250 * 2 ** attempt, LONGEST_PAUSE_MS);
    const sentKey = key;
    try {
      const headers = { ...(type && { "Content-Type": type }), ...credentials() };
      const answer = await send(path, body, headers, signal);
      if (answer.status < 500 && answer.status !== 429) reportProblem("");
      if (answer.ok) return answer;
      failure = await describeFailure(answer);
      if (answer.status === 401) {
        if (sentKey !== key) continue; // the key changed after this request was sent
        throw new NeedsKey(failure.message);
      }
      if (!failure.isRetryable) throw failure;
      pause = Math.max(pause, 1000 * (Number(answer.headers.get("Retry-After")) || 0));
    } catch (error) {
      if (error instanceof NeedsKey || error === failure) throw error;
      if (signal?.aborted) throw new Cancelled();
      if (body instanceof FormData && !(await isReadable([...body.values()]))) throw new Refused("unreadable", "The browser cannot read this file.");
      failure = new Refused("unreachable", "The service does not answer. Check that it is running.", true);
    }
    reportProblem(failure.message);
    if (performance.now() + pause > giveUpAt) throw failure;
    await new Promise((resume) => setTimeout(resume, pause * (0.5 + Math.random() / 2)));
  }
}

// fetch() blocks the page for a millisecond a file, because it makes a blob of each; this request does not.
function send(path, body, headers, signal) {
  return new Promise((resolve, reject) => {
    signal?.throwIfAborted();
    const request = new XMLHttpRequest();
    request.open("POST", path);
    for (const [name, value] of Object.entries(headers)) request.setRequestHeader(name, value);
    signal?.addEventListener("abort", () => request.abort());
    request.onabort = request.onerror = reject;
    request.onload = () => resolve(new Response(request.response, { status: request.status, headers: { "Retry-After": request.getResponseHeader("Retry-After") ?? "" } }));
    request.send(body);
  });
}

// A file that is gone or has changed fails a request as a service does that does not answer.
function isReadable(files) {
  return Promise.all(files.map((file) => file.slice(0, 1).arrayBuffer())).then(() => true, () => false);
}

async function describeFailure(answer) {
  const isRetryable = RETRYABLE.has(answer.status);
  try {
    const { error } = await answer.json();
    return new Refused(error.code, error.message, isRetryable);
  } catch {
    return new Refused(`http_${answer.status}`, `The service returned HTTP status ${answer.status}.`, isRetryable);
  }
}
