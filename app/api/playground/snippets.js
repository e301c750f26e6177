// SQL and curl commands that reproduce a result, and the batch that Snowflake would send.

const SHOWN_CHARACTERS = 48;

export function sqlFor(name) {
  const literal = name.replaceAll("\\", "\\\\").replaceAll("'", "''");
  return [
    "SELECT relative_path, ext_classify(file_url, {'evidence': TRUE}) AS answer",
    "FROM DIRECTORY(@images)",
    `WHERE relative_path = '${literal}';`,
  ].join("\n");
}

export function curlFor(name, withKey) {
  const quoted = `'@${name.replaceAll("'", "'\\''")}'`;
  const key = withKey ? ' \\\n  -H "X-API-Key: $KEY"' : "";
  const url = new URL("classify?evidence=true", document.baseURI);
  return `curl -s -H 'Content-Type: application/octet-stream'${key} \\\n  --data-binary ${quoted} \\\n  '${url}'`;
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
