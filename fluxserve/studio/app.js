// The studio: puts its parts together. It speaks to the public API alone and knows nothing that /v1/models does not say.

import { draw, key, models, readiness, ServerError } from "./api.js";
import { LANGUAGES } from "./code.js";
import { $, announce, button, el, release, urlOf } from "./dom.js";
import * as gallery from "./gallery.js";
import { addInput, readInputs, readStrength, setInputs, takeAtMost, writeStrength } from "./inputs.js";
import { settingsIn } from "./png.js";
import * as settings from "./settings.js";
import * as stage from "./stage.js";

const IDEAS = ["a red apple on a white background", "a lighthouse", "a fox on a light green background", "a sailboat"];
const PATIENCE_MS = 1500;
const NARROW = "(max-width: 60rem)";
const THEMES = { auto: "Auto", light: "Light", dark: "Dark" };

let records = [];
let chosen = null;
let drawing = null;
let modelsAreKnown;
const modelsKnown = new Promise(resolve => (modelsAreKnown = resolve));

// Drawing

async function startDrawing(recipe) {
  if (drawing) return;
  settings.clearErrors();
  drawing = new AbortController();
  showBusy(true);
  const made = [];
  const [width, height] = sizeOf(recipe);
  stage.begin(Math.min(Math.max(Number(recipe.n) || 1, 1), 10), width, height, at => chooseMade(made, at));
  stage.tell(settings.isLoaded() ? "Waiting for the server …" : "Waiting for the model to load …", 0);
  try {
    for await (const event of draw(recipe, drawing.signal)) {
      stage.onEvent(event, "");
      if (event.kind === "done") made[event.image] = await keep(recipe, event);
    }
    stage.end(`Done: ${made.length === 1 ? "one picture" : `${made.length} pictures`}.`);
  } catch (error) {
    onFailure(error);
  }
  drawing = null;
  showBusy(false);
  const first = made.findIndex(Boolean);
  if (first >= 0) chooseMade(made, first);
  else if (chosen && stage.isEmpty()) stage.show(chosen);
  loadModels();
}

function onFailure(error) {
  if (error.name === "AbortError") return stage.end("Stopped.");
  stage.end("Nothing was drawn.");
  if (!(error instanceof ServerError)) error = new ServerError(0, { message: `The connection was lost: ${error.message}` });
  if (error.status === 401) return askForKey(error.message);
  settings.showError(error);
}

function showBusy(busy) {
  const focused = document.activeElement === $(busy ? "draw" : "stop");
  $("draw").hidden = busy;
  $("stop").hidden = !busy;
  if (focused) $(busy ? "stop" : "draw").focus();
}

/** The size that frames are laid out for, before the server has said one. */
function sizeOf({ size, inputs }) {
  if (/^\d+x\d+$/.test(size)) return size.split("x").map(Number);
  if (inputs?.[0]?.width) return [inputs[0].width, inputs[0].height];
  return (settings.chosenModel()?.default_size ?? "1x1").split("x").map(Number);
}

const readRecipe = () => ({ ...settings.readRecipe(), ...readInputs(), strength: readStrength() });

function writeRecipe(recipe) {
  settings.writeRecipe(recipe);
  takeInputs();
  setInputs(recipe.inputs ?? [], recipe.mask ?? null);
  writeStrength(recipe.strength);
}

// The gallery, and the picture chosen

async function keep(recipe, { blob, seed, width, height, timings }) {
  const picture = { blob, seed, width, height, timings, recipe: { ...recipe, n: 1, seed, size: `${width}x${height}` }, model: recipe.model };
  try {
    const record = await gallery.keep(picture);
    records.unshift(record);
    await fitGallery();
    return record;
  } catch (error) {
    announce(`The gallery cannot keep it: ${error.message}`); // no room, or a private window: it is on the stage
    return picture;
  }
}

async function fitGallery() {
  const gone = await gallery.makeRoom(records);
  gone.forEach(each => release(each.thumb));
  records = records.filter(each => !gone.includes(each));
  showGallery();
}

function showGallery() {
  $("gallery").replaceChildren(...records.map(thumb));
  $("forget").hidden = records.length === 0;
  $("forget").textContent = "Forget all";
  $("gallery-note").textContent = records.length
    ? `${records.length} of at most ${gallery.MOST}, kept in this browser alone.`
    : "Pictures are kept in this browser alone.";
}

function thumb(record) {
  const image = el("img", { src: urlOf(record.thumb), alt: record.recipe.prompt || "A variation", loading: "lazy", width: 120, height: 120 });
  return el("li", {}, el("button", { type: "button", "data-id": record.id, "aria-pressed": "false", click: () => chooseRecord(record) }, image));
}

function chooseMade(made, at) {
  if (!made[at]) return;
  stage.mark(at);
  choose(made[at]);
}

function chooseRecord(record) {
  if (drawing) return announce("A picture is being drawn.");
  stage.show(record);
  stage.tell("From the gallery.", 1);
  choose(record);
  if (matchMedia(NARROW).matches) $("stage").scrollIntoView({ block: "nearest" });
}

function choose(record) {
  chosen = record;
  for (const node of $("gallery").querySelectorAll("button")) node.setAttribute("aria-pressed", String(node.dataset.id === String(record.id)));
  stage.describe(record, [
    ["Download", () => download(record)],
    ["Use as input", () => useAsInput(record)],
    ["Vary", () => vary(record)],
    ["Same seed again", () => again(record)],
    ["Remove", () => removeRecord(record)],
    ["Copy as"],
    ...Object.entries(LANGUAGES).map(([name, write]) => [name, () => copy(name, write(record.recipe)), `Copy as ${name}`]),
  ]);
}

function download({ blob, seed }) {
  el("a", { href: urlOf(blob), download: `fluxserve-${seed}.${blob.type.split("/")[1]}` }).click();
}

async function useAsInput({ blob }) {
  setInputs([]);
  await addInput(blob);
  $("prompt").focus();
}

function vary(record) {
  const { width, height, recipe, blob } = record;
  writeRecipe({ ...recipe, prompt: "", seed: "", inputs: [{ blob, width, height }], mask: null, strength: "" });
  startDrawing(readRecipe());
}

function again(record) {
  writeRecipe(record.recipe);
  startDrawing(readRecipe());
}

async function removeRecord(record) {
  if (record.id !== undefined) await gallery.remove(record.id);
  records = records.filter(each => each.id !== record.id);
  showGallery();
  forgetChosen();
  announce("Removed.");
  $("prompt").focus();
}

async function copy(name, text) {
  try {
    await navigator.clipboard.writeText(text);
    stage.tell(`Copied as ${name}.`, $("progress").value);
    announce(`Copied as ${name}.`);
  } catch {
    $("code").textContent = text; // pages that are not from this machine may not write to the clipboard
    $("code-dialog").showModal();
  }
}

async function forgetAll() {
  if (!$("forget").textContent.startsWith("Really")) {
    $("forget").textContent = `Really forget all ${records.length}?`;
    return;
  }
  await gallery.forgetAll();
  records.forEach(each => release(each.thumb));
  records = [];
  showGallery();
  forgetChosen();
  announce("The gallery is empty.");
}

function forgetChosen() {
  chosen = null;
  stage.forget();
}

// Pictures that come in

async function take(files, asInput) {
  for (const file of files) {
    const recipe = asInput ? null : await settingsIn(file);
    if (recipe === null) await addInput(file);
    else await restore(recipe);
  }
}

/** Sizes, LoRAs and names are those of a model, so its controls must be there first. */
async function restore(recipe) {
  await modelsKnown;
  settings.clearErrors();
  writeRecipe(recipe);
  stage.tell("The picture's settings are back.", 0);
}

const imagesOf = transfer => [...(transfer?.files ?? [])].filter(file => file.type.startsWith("image/"));

function listenForPictures() {
  $("files").addEventListener("change", async () => {
    await take($("files").files, true);
    $("files").value = "";
  });
  addEventListener("dragover", event => {
    event.preventDefault();
    document.body.classList.add("dragging");
  });
  addEventListener("dragleave", event => event.relatedTarget ?? document.body.classList.remove("dragging"));
  addEventListener("drop", event => {
    event.preventDefault();
    document.body.classList.remove("dragging");
    take(imagesOf(event.dataTransfer), Boolean(event.target.closest?.("#drop")));
  });
  addEventListener("paste", event => {
    const images = imagesOf(event.clipboardData);
    if (images.length) event.preventDefault();
    take(images, true);
  });
}

// The server: its state, its models, its key

const STATES = { starting: "Loading the model", restarting: "Restarting the model", draining: "Shutting down", failed: "The model cannot be loaded", unreachable: "The server does not answer" };

async function watchServer() {
  const health = await readiness();
  const ready = health.status === "ok";
  const part = health.total ? ` ${Math.round((100 * health.done) / health.total)} %` : "";
  $("server").dataset.state = ready ? "ready" : health.status === "failed" ? "failed" : "waiting";
  const state = ready ? `Ready${settings.chosenModel() ? `: ${settings.chosenModel().id}` : ""}` : `${STATES[health.status] ?? health.status}${part}`;
  if ($("server").textContent !== state) $("server").textContent = state;
  if (ready && (!settings.chosenModel() || settings.someUnknown())) await loadModels();
  setTimeout(watchServer, PATIENCE_MS * (ready ? (settings.someUnknown() ? 3 : 20) : 1));
}

async function loadModels() {
  try {
    if (settings.showModels(await models())) takeInputs();
    $("server").textContent = `Ready: ${settings.chosenModel().id}`;
    modelsAreKnown();
  } catch (error) {
    if (error.status === 401) askForKey(error.message);
  }
}

const takeInputs = () => takeAtMost(settings.chosenModel()?.limits?.max_input_images ?? 1);

function askForKey(why) {
  $("key-why").textContent = `${why ?? "This server may ask for a key."} It is kept for this tab's session only.`;
  $("key").value = key.get();
  $("key-forget").hidden = !key.get();
  if (!$("key-dialog").open) $("key-dialog").showModal();
}

function onKey() {
  const chosen = $("key-dialog").returnValue;
  if (chosen === "save") key.set($("key").value.trim());
  if (chosen === "forget") key.set("");
  $("key").value = "";
  if (chosen === "save") loadModels();
}

function showTheme(theme) {
  if (theme === "auto") delete document.documentElement.dataset.theme;
  else document.documentElement.dataset.theme = theme;
  $("theme").textContent = THEMES[theme];
  $("theme").setAttribute("aria-label", `Theme: ${theme === "auto" ? "as the system has it" : theme}`);
}

function nextTheme() {
  const names = Object.keys(THEMES);
  const next = names[(names.indexOf(document.documentElement.dataset.theme ?? "auto") + 1) % names.length];
  localStorage.setItem("fluxserve-theme", next);
  showTheme(next);
}

// Keys and clicks

function onKeyDown(event) {
  if (document.querySelector("dialog[open]")) return;
  if (event.key === "Escape" && drawing) drawing.abort();
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) $("composer").requestSubmit();
  if (event.key === "/" && !event.target.matches("input, textarea, select")) {
    event.preventDefault();
    $("prompt").focus();
  }
}

function listen() {
  $("composer").addEventListener("submit", event => {
    event.preventDefault();
    startDrawing(readRecipe());
  });
  $("stop").addEventListener("click", () => drawing?.abort());
  $("model").addEventListener("change", () => (settings.showModel(), takeInputs()));
  $("forget").addEventListener("click", forgetAll);
  $("key-open").addEventListener("click", () => askForKey());
  $("key-dialog").addEventListener("close", onKey);
  $("help-open").addEventListener("click", () => $("help-dialog").showModal());
  $("theme").addEventListener("click", nextTheme);
  addEventListener("keydown", onKeyDown);
  listenForPictures();
}

async function start() {
  showTheme(localStorage.getItem("fluxserve-theme") ?? "auto");
  $("ideas").append(...IDEAS.map(idea => button(idea, () => {
    $("prompt").value = idea;
    $("prompt").focus();
  })));
  $("options").open = !matchMedia(NARROW).matches;
  listen();
  watchServer();
  records = await gallery.all().catch(() => []);
  showGallery();
}

start();
