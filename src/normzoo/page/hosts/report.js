// The page in a file of its own: each run lies in a script element, as packing.py writes it, in base64.
{
  const page = document.getElementById("page");
  const scripts = [...document.querySelectorAll("script[data-run]")];
  const comparison = document.querySelector("script[data-comparison]");

  const unzip = async (text) => {
    const bytes = Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
    const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
    return new Uint8Array(await new Response(stream).arrayBuffer());
  };

  /** Numbers as nested lists; null for NaN. */
  const nested = (flat, [size, ...inner], start = 0, count = flat.length) => {
    if (!inner.length) return flat.slice(start, start + count);
    return Array.from({ length: size }, (_, i) => nested(flat, inner, start + (i * count) / size, count / size));
  };

  const numbers = (bytes, { shape, at, drop }) => {
    const count = shape.reduce((product, size) => product * size, 1);
    const steps = shape[0];
    const series = count / steps || 0;
    const flat = new Array(count);
    const bits = new Int32Array(1);
    const value = new Float32Array(bits.buffer);
    for (let i = 0; i < series; i++) {
      for (let step = 0, sum = 0; step < steps; step++) {
        const place = at + i * steps + step;
        const difference = bytes[place] | (bytes[place + count] << 8) | (bytes[place + 2 * count] << 16);
        sum += (difference >>> 1) ^ -(difference & 1);
        bits[0] = sum << drop;
        flat[step * series + i] = Number.isNaN(value[0]) ? null : value[0];
      }
    }
    return nested(flat, shape);
  };

  const unpack = async (packed) => {
    const bytes = await unzip(packed);
    const end = 4 + new DataView(bytes.buffer).getUint32(0, true);
    const arrays = bytes.subarray(end);
    const text = new TextDecoder().decode(bytes.subarray(4, end));
    return JSON.parse(text, (key, value) => (Number.isInteger(value?.drop) ? numbers(arrays, value) : value));
  };

  if ("DecompressionStream" in window) {
    mount(page, {
      live: false,
      comparison: async () => comparison && JSON.parse(comparison.textContent),
      runs: async () => scripts.map((script) => ({ name: script.dataset.run, version: "1" })),
      run: async (name) => unpack(scripts.find((script) => script.dataset.run === name).textContent),
    });
  } else {
    page.textContent = "This page needs a browser of 2023 or later: this one has no DecompressionStream.";
  }
}
