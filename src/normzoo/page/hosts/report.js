// The page in a file of its own: the runs lie in script elements, as JSON, compressed, in base64.
{
  const page = document.getElementById("page");
  const scripts = [...document.querySelectorAll("script[data-run]")];

  const unpack = (text) => {
    const bytes = Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
    const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
    return new Response(stream).json();
  };

  if ("DecompressionStream" in window) {
    mount(page, {
      live: false,
      runs: async () => scripts.map((script) => ({ name: script.dataset.run, version: "1" })),
      run: async (name) => unpack(scripts.find((script) => script.dataset.run === name).textContent),
    });
  } else {
    page.textContent = "This page needs a browser of 2023 or later: this one has no DecompressionStream.";
  }
}
