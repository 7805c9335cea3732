// The gallery: pictures with all that made them, in this browser alone (IndexedDB). The oldest give way.

const DATABASE = "fluxserve-studio";
const STORE = "pictures";
export const MOST = 200;
const MOST_BYTES = 256 * 2 ** 20;
const THUMB = 256;

let opened;

function open() {
  opened ??= new Promise((resolve, reject) => {
    const request = indexedDB.open(DATABASE, 1);
    request.onupgradeneeded = () => request.result.createObjectStore(STORE, { keyPath: "id", autoIncrement: true });
    request.onsuccess = () => resolve(request.result);
    request.onerror = () => reject(request.error);
  });
  return opened;
}

async function run(mode, act) {
  const transaction = (await open()).transaction(STORE, mode);
  const request = act(transaction.objectStore(STORE));
  return new Promise((resolve, reject) => {
    transaction.oncomplete = () => resolve(request.result);
    transaction.onerror = transaction.onabort = () => reject(transaction.error);
  });
}

/** All records, the newest first. */
export const all = async () => (await run("readonly", store => store.getAll())).reverse();

/** Keeps a picture {blob, recipe, seed, width, height, ...}; returns its record. The oldest go where there is no room. */
export async function keep(picture) {
  const record = { ...picture, created: Date.now(), thumb: await thumbnail(picture.blob) };
  record.id = await run("readwrite", store => store.add(record));
  return record;
}

/** Removes what is beyond the bounds from the end of the list; returns what went. */
export async function makeRoom(records) {
  let bytes = 0;
  const gone = records.filter((record, at) => (bytes += sizeOf(record)) > MOST_BYTES || at >= MOST);
  for (const record of gone) await remove(record.id);
  return gone;
}

function sizeOf({ blob, thumb, recipe }) {
  const inputs = recipe.inputs?.reduce((sum, each) => sum + each.blob.size, 0) ?? 0;
  return blob.size + thumb.size + inputs + (recipe.mask?.size ?? 0);
}

export const remove = id => run("readwrite", store => store.delete(id));
export const forgetAll = () => run("readwrite", store => store.clear());

async function thumbnail(blob) {
  const bitmap = await createImageBitmap(blob);
  const scale = Math.min(1, THUMB / Math.min(bitmap.width, bitmap.height));
  const size = { width: Math.round(bitmap.width * scale), height: Math.round(bitmap.height * scale) };
  const canvas = Object.assign(document.createElement("canvas"), size);
  canvas.getContext("2d").drawImage(bitmap, 0, 0, size.width, size.height);
  bitmap.close();
  return new Promise(resolve => canvas.toBlob(resolve, "image/webp", 0.85));
}
