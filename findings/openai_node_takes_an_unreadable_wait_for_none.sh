#!/usr/bin/env bash
# openai-node 6.49.0 and 7.59.0.
#
# A 429 may carry a Retry-After that is no number and no date. One expects the client's own pause then, half a second at
# first and longer after, so that a busy server is not pressed.
# Seen: 7.59.0 does that. 6.49.0 comes back at once, each time: a Retry-After it cannot read is a wait of nothing.
#
# Exits 0 while this is so, 1 when it has changed.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cat >"$work/ask.mjs" <<'JS'
import http from "node:http";
import OpenAI from "openai";

const came = [];
const server = http.createServer((request, response) => {
  request.resume().on("end", () => {
    came.push(performance.now());
    response.writeHead(429, { "Content-Type": "application/json", "Retry-After": "soon" });
    response.end('{"error": {"message": "busy"}}');
  });
});
await new Promise((done) => server.listen(0, "127.0.0.1", done));
const baseURL = `http://127.0.0.1:${server.address().port}/v1`;
const client = new OpenAI({ apiKey: "none", baseURL, maxRetries: 1 });
await client.images.generate({ prompt: "a" }).catch(() => {});
console.log(came.length === 2 && came[1] - came[0] < 200 ? "at once" : "after a pause");
process.exit(0);
JS
seen=""
for version in 6.49.0 7.59.0; do
  mkdir "$work/$version"
  npm install --silent --no-audit --no-fund --prefix "$work/$version" "openai@$version"
  cp "$work/ask.mjs" "$work/$version/"
  seen="$seen; $version $(node "$work/$version/ask.mjs")"
done
echo "second request$seen"
[ "$seen" = "; 6.49.0 at once; 7.59.0 after a pause" ]
