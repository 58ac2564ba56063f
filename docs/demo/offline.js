// Keeps all files of the page, so that it works without a network once it was loaded. While there is one, the files
// come from there, and the kept ones are renewed.

const NAME = "deepres-demo";

async function keepAll() {
  const { files } = await (await fetch("build/demo.json")).json();
  const cache = await caches.open(NAME);
  await cache.addAll(["./", ...files]);
}

async function answer(request) {
  const cache = await caches.open(NAME);
  try {
    const response = await fetch(request);
    if (response.ok) await cache.put(request, response.clone());
    return response;
  } catch (error) {
    const kept = await cache.match(request, { ignoreSearch: true });
    if (kept) return kept;
    throw error;
  }
}

addEventListener("install", (event) => event.waitUntil(keepAll()));
addEventListener("activate", (event) => event.waitUntil(clients.claim()));
addEventListener("fetch", (event) => {
  const { method, url } = event.request;
  if (method === "GET" && url.startsWith(registration.scope)) event.respondWith(answer(event.request));
});
