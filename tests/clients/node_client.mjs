// Everything a program does with openai-node, told as JSON: `node node_client.mjs BASE_URL KEY SEED IMAGE MASK MODULES`.
// The same scenarios as python_client.py, with the same words.

import fs from "node:fs";
import { createRequire } from "node:module";
import { pathToFileURL } from "node:url";

const [baseURL, apiKey, seedText, imagePath, maskPath, modules] = process.argv.slice(2);
const require = createRequire(pathToFileURL(`${modules}/`));
const { OpenAI, APIError } = require("openai");

const seed = Number(seedText);
const client = new OpenAI({ baseURL, apiKey });
const upload = (path) => fs.createReadStream(path);

async function tell(image) {
  let data, type = null;
  if (image.url) {
    const answer = await fetch(image.url);
    [data, type] = [Buffer.from(await answer.arrayBuffer()), answer.headers.get("content-type")];
  } else {
    data = Buffer.from(image.b64_json, "base64");
  }
  return { seed: image.seed, url: Boolean(image.url), type, png: data.subarray(1, 4).toString() === "PNG" };
}

const tellAll = (images) => Promise.all(images.map(tell));

async function refusal(fields, options = { maxRetries: 0 }, using = client) {
  try {
    await using.images.generate({ prompt: "a cat", ...fields }, options);
  } catch (error) {
    if (!(error instanceof APIError)) throw error;
    return { kind: error.constructor.name, code: error.code, param: error.param };
  }
  return { kind: "none" };
}

async function stream(fields) {
  const told = [];
  for await (const event of await client.images.generate({ prompt: "a cat", seed, ...fields, stream: true })) {
    told.push([event.type, event.partial_image_index ?? null, event.image_index, event.b64_json.length > 0]);
  }
  return told;
}

const scenarios = {
  async generate_url() {
    return tellAll((await client.images.generate({ model: "default", prompt: "A vibrant sunset", n: 1, seed })).data);
  },
  async generate_b64() {
    const fields = { prompt: "a cat", n: 2, size: "256x320", response_format: "b64_json", seed };
    const answer = await client.images.generate(fields);
    return { images: await tellAll(answer.data), size: answer.size, tokens: answer.usage.output_tokens };
  },
  async stream_with_previews() {
    const told = {};
    for (const count of [0, 1, 2, 3]) told[count] = await stream({ partial_images: count });
    return told;
  },
  stream_two: () => stream({ n: 2 }),
  async stream_that_fails() {
    try {
      await stream({ prompt: "a cat [nan:vae]" });
    } catch (error) {
      return { kind: error.constructor.name, code: error.code };
    }
    return { kind: "none" };
  },
  async edit() {
    const fields = { prompt: "a cat", seed };
    const answers = [
      await client.images.edit({ image: upload(imagePath), ...fields }),
      await client.images.edit({ image: [upload(imagePath)], ...fields }),
      await client.images.edit({ image: upload(imagePath), mask: upload(maskPath), ...fields, strength: 0.5 }),
    ];
    return tellAll(answers.map((answer) => answer.data[0]));
  },
  async edit_stream() {
    const types = [];
    const fields = { image: upload(imagePath), prompt: "a cat", stream: true, partial_images: 1 };
    for await (const event of await client.images.edit(fields)) types.push(event.type);
    return types;
  },
  async variation() {
    return tellAll((await client.images.createVariation({ image: upload(imagePath), n: 2 })).data);
  },
  async models() {
    const list = [];
    for await (const model of client.models.list()) list.push(model.id);
    return { list, one: (await client.models.retrieve("fluxserve/fake")).id };
  },
  async leave_the_stream() {
    const fields = { prompt: "a cat [slow:step:0.2]", partial_images: 3, seed: seed + 1, steps: 40, stream: true };
    const events = await client.images.generate(fields);
    const first = (await events[Symbol.asyncIterator]().next()).value.type;
    events.controller.abort();
    await client.images.generate({ prompt: "a cat" });
    return first;
  },
  async time_out() {
    const fields = { prompt: "a cat [slow:step:0.5]", seed: seed + 2 };
    return tellAll((await client.images.generate(fields, { timeout: 1000, maxRetries: 2 })).data);
  },
  async three_at_once() {
    const seeds = [seed + 3, seed + 4, seed + 5];
    const draw = (one) => client.images.generate({ prompt: "a cat [slow:step:0.05]", seed: one });
    const answers = await Promise.all(seeds.map(draw));
    return answers.every((answer, i) => answer.data[0].seed === seeds[i]);
  },
  async refusals() {
    const wrong = new OpenAI({ baseURL, apiKey: "wrong" });
    const hasty = { headers: { "x-request-timeout": "0.1" } };
    return {
      size: await refusal({ size: "1000x1000" }),
      model: await refusal({ model: "sdxl" }),
      key: await refusal({}, { maxRetries: 0 }, wrong),
      "key in a stream": await refusal({ stream: true }, { maxRetries: 0 }, wrong),
      "size in a stream": await refusal({ size: "7x7", stream: true }),
      deadline: await refusal({ prompt: "a [slow:step:0.2]" }, hasty),
    };
  },
};

const told = {};
for (const [name, scenario] of Object.entries(scenarios)) told[name] = await scenario();
process.stdout.write(JSON.stringify(told));
