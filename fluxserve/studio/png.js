// What a PNG that was drawn here says of how it was made: its text chunks (PNG 3rd edition, 11.3.3).

const SIGNATURE = [137, 80, 78, 71, 13, 10, 26, 10];

/** The settings that a file holds, in the API's words; null if it is none of ours. */
export async function settingsIn(file) {
  const bytes = new Uint8Array(await file.arrayBuffer());
  if (SIGNATURE.some((byte, at) => bytes[at] !== byte)) return null;
  const told = Object.fromEntries(texts(bytes));
  return told.prompt !== undefined && told.seed !== undefined ? recipeOf(told) : null;
}

function* texts(bytes) {
  const view = new DataView(bytes.buffer);
  for (let at = 8; at + 12 <= bytes.length; ) {
    const length = view.getUint32(at);
    const kind = latin1(bytes.subarray(at + 4, at + 8));
    if (kind === "IDAT" || at + 12 + length > bytes.length) return;
    const chunk = bytes.subarray(at + 8, at + 8 + length);
    if (kind === "tEXt") yield plain(chunk);
    if (kind === "iTXt") yield international(chunk);
    at += 12 + length;
  }
}

const latin1 = bytes => Array.from(bytes, byte => String.fromCharCode(byte)).join("");

function plain(chunk) {
  const end = chunk.indexOf(0);
  return [latin1(chunk.subarray(0, end)), latin1(chunk.subarray(end + 1))];
}

/** keyword, NUL, compressed?, method, language, NUL, translated keyword, NUL, UTF-8. Compressed ones are not ours. */
function international(chunk) {
  const end = chunk.indexOf(0);
  const language = chunk.indexOf(0, end + 3);
  const translated = chunk.indexOf(0, language + 1);
  const text = chunk[end + 1] ? "" : new TextDecoder().decode(chunk.subarray(translated + 1));
  return [latin1(chunk.subarray(0, end)), text];
}

function recipeOf(told) {
  return {
    prompt: told.prompt,
    model: told.model ?? "",
    seed: told.seed,
    size: told.size ?? "auto",
    n: 1,
    num_inference_steps: told.steps ?? "",
    guidance_scale: told.guidance === "none" ? "" : told.guidance ?? "",
    negative_prompt: told.negative_prompt ?? "",
    true_cfg_scale: told.true_cfg_scale ?? "",
    loras: (told.loras ?? "").split(", ").filter(Boolean).map(lora),
  };
}

function lora(text) {
  const at = text.lastIndexOf(":");
  return { name: text.slice(0, at), scale: Number(text.slice(at + 1)) };
}
