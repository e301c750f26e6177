// SQL, curl and Python that reproduce a result, and the batch that Snowflake would send.

const SHOWN_CHARACTERS = 48;

export function sqlFor(name) {
  return [
    "SELECT relative_path, ext_classify(file_url, {'evidence': TRUE}) AS answer",
    "FROM DIRECTORY(@images)",
    `WHERE relative_path = ${literal(name)};`,
  ].join("\n");
}

// For a folder, or loose files, that `ext-classify upload` has copied to the stage under the same names.
export function sqlForAll(names) {
  const folder = commonFolder(names);
  const source = folder ? `${quoted(folder)} --folder ${quoted(folder)}` : "FILES";
  return [
    `-- Copy them to the stage first: ext-classify upload ${source} --stage DATABASE.SCHEMA.images`,
    "CREATE TABLE answers AS",
    "SELECT relative_path, ext_classify(file_url) AS answer",
    "FROM DIRECTORY(@images)",
    folder
      ? `WHERE STARTSWITH(relative_path, ${literal(`${folder}/`)});`
      : `WHERE relative_path IN (${names.map(literal).join(", ")});`,
    "",
    "SELECT relative_path, answer:label::string AS label, answer:confidence::float AS confidence,",
    "       answer:nearest_label::string AS nearest_label, answer:error:code::string AS error",
    "FROM answers ORDER BY relative_path;",
  ].join("\n");
}

export function curlFor(name, withKey) {
  const key = withKey ? ' \\\n  -H "Authorization: Bearer $KEY"' : ""; // an API key or a token
  return `curl -s -H 'Content-Type: application/octet-stream'${key} \\\n  --data-binary ${quoted(`@${name}`)} \\\n  '${service("classify?evidence=true")}'`;
}

export function pythonFor(name, withKey) {
  const [imports, key] = withKey ? ["import os\n", 'api_key=os.environ["KEY"]'] : ["", "api_key=None"];
  return [
    `${imports}from pathlib import Path`,
    "",
    "from app.client import Client",
    "",
    `with Client("${service("").replace(/\/$/, "")}", ${key}) as client:`,
    `    [outcome] = client.classify_all([Path(${JSON.stringify(name)})], evidence=True)`,
    '    print(outcome["label"], outcome["confidence"])',
  ].join("\n");
}

function service(path) {
  return String(new URL(path, document.baseURI.split("#")[0]));
}

function literal(text) {
  return `'${text.replaceAll("\\", "\\\\").replaceAll("'", "''")}'`;
}

function quoted(text) {
  return `'${text.replaceAll("'", "'\\''")}'`;
}

function commonFolder(names) {
  const folders = new Set(names.map((name) => name.slice(0, Math.max(0, name.indexOf("/")))));
  return folders.size === 1 ? [...folders][0] : "";
}

export async function batchOf(files) {
  const sources = await Promise.all(files.map(base64Of));
  return { data: sources.map((source, number) => [number, source]) };
}

export function shown(document) {
  const cut = (_, value) =>
    typeof value === "string" && value.length > 2 * SHOWN_CHARACTERS
      ? `${value.slice(0, SHOWN_CHARACTERS)}… ${value.length} characters`
      : value;
  return JSON.stringify(document, cut, 2);
}

async function base64Of(file) {
  const bytes = new Uint8Array(await file.arrayBuffer());
  let binary = "";
  for (let at = 0; at < bytes.length; at += 0x8000) binary += String.fromCharCode(...bytes.subarray(at, at + 0x8000));
  return btoa(binary);
}
