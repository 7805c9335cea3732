// A recipe as a program: curl, Python and JavaScript, as docs/interop.md has them.

import { address, fieldsOf, jsonOf, key, routeOf } from "./api.js";

export const LANGUAGES = { curl, Python: python, JavaScript: javascript };

const EXTRAS = ["seed", "num_inference_steps", "guidance_scale", "negative_prompt", "true_cfg_scale", "loras", "strength"];

const quoted = text => `'${String(text).replaceAll("'", "'\\''")}'`;
const filesOf = recipe => (recipe.inputs ?? []).map((_, at) => (at ? `input-${at + 1}.png` : "input.png"));

function curl(recipe) {
  const route = routeOf(recipe);
  const lines = [`curl -s ${address(route)}`];
  if (key.get()) lines.push(`-H "Authorization: Bearer $FLUXSERVE_API_KEY"`);
  const fields = { ...fieldsOf(recipe), response_format: "file" };
  if (recipe.inputs?.length) lines.push(...parts(recipe, fields, route));
  else lines.push("-H 'Content-Type: application/json'", `-d ${quoted(jsonOf(fields))}`);
  return [...lines, "-o picture.png"].join(" \\\n     ");
}

function parts(recipe, fields, route) {
  const files = filesOf(recipe);
  const field = files.length > 1 ? "image[]" : "image";
  const told = Object.entries(fields).filter(([name]) => name !== "prompt" || route.endsWith("edits"));
  return [
    ...told.map(([name, value]) => `--form-string ${quoted(`${name}=${typeof value === "object" ? JSON.stringify(value) : value}`)}`),
    ...files.map(name => `-F ${quoted(`${field}=@${name}`)}`),
    ...(recipe.mask ? ["-F 'mask=@mask.png'"] : []),
  ];
}

function split(recipe) {
  const fields = Object.entries(fieldsOf(recipe));
  const own = fields.filter(([name]) => !EXTRAS.includes(name));
  return [own, fields.filter(([name]) => EXTRAS.includes(name))];
}

/** A value as Python and JavaScript both write it. Seeds, and numbers typed as text, are digits. */
const literal = (name, value) => (typeof value === "string" && (name === "seed" || !isNaN(value)) && name !== "prompt" && name !== "negative_prompt" ? value : JSON.stringify(value));

function python(recipe) {
  const verb = { generations: "generate", edits: "edit", variations: "create_variation" }[routeOf(recipe).split("/").pop()];
  const [own, extra] = split(recipe);
  const files = filesOf(recipe).map(name => `open(${JSON.stringify(name)}, "rb")`);
  const given = own.filter(([name]) => name !== "prompt" || verb !== "create_variation").map(([name, value]) => `${name}=${literal(name, value)}`);
  if (files.length) given.unshift(`image=${files.length > 1 ? `[${files.join(", ")}]` : files[0]}`);
  if (recipe.mask && verb === "edit") given.push('mask=open("mask.png", "rb")');
  given.push('response_format="b64_json"');
  if (extra.length) given.push(`extra_body={${extra.map(([name, value]) => `"${name}": ${literal(name, value)}`).join(", ")}}`);
  return `import base64
import os
from openai import OpenAI

client = OpenAI(base_url=${JSON.stringify(address("v1"))}, api_key=os.environ.get("FLUXSERVE_API_KEY", "none"))
answer = client.images.${verb}(
    ${given.join(",\n    ")},
)
for i, picture in enumerate(answer.data):
    open(f"picture-{i}.png", "wb").write(base64.b64decode(picture.b64_json))
`;
}

function javascript(recipe) {
  const route = routeOf(recipe);
  const fields = { ...fieldsOf(recipe), response_format: "b64_json" };
  const files = filesOf(recipe);
  const body = files.length ? "form" : `JSON.stringify(${JSON.stringify(fields, null, 2).replace(/"seed": "(\d{1,15})"/, '"seed": $1')})`;
  const form = files.length ? formLines(recipe, fields, files, route) : "";
  const type = files.length ? "" : `    "Content-Type": "application/json",\n`;
  return `import { ${files.length ? "openAsBlob, " : ""}writeFileSync } from "node:fs";

${form}const answer = await fetch(${JSON.stringify(address(route))}, {
  method: "POST",
  headers: {
${type}    Authorization: \`Bearer \${process.env.FLUXSERVE_API_KEY ?? "none"}\`,
  },
  body: ${body},
});
const { data } = await answer.json();
data.forEach((picture, i) => writeFileSync(\`picture-\${i}.png\`, Buffer.from(picture.b64_json, "base64")));
`;
}

function formLines(recipe, fields, files, route) {
  const told = Object.entries(fields).filter(([name]) => name !== "prompt" || route.endsWith("edits"));
  const lines = told.map(([name, value]) => `form.append(${JSON.stringify(name)}, ${JSON.stringify(typeof value === "object" ? JSON.stringify(value) : String(value))});`);
  const field = files.length > 1 ? "image[]" : "image";
  lines.push(...files.map(name => `form.append(${JSON.stringify(field)}, await openAsBlob(${JSON.stringify(name)}), ${JSON.stringify(name)});`));
  if (recipe.mask) lines.push('form.append("mask", await openAsBlob("mask.png"), "mask.png");');
  return `const form = new FormData();\n${lines.join("\n")}\n\n`;
}
