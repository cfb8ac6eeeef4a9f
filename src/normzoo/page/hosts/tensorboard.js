// The page in TensorBoard's tab Normalization, which calls `render` in a frame of its own.

const at = (path) => new URL(path, import.meta.url);

/** A route of the plugin. Its error is a sentence for the user. */
async function get(route) {
  const response = await fetch(at(route));
  const found = await response.json();
  if (!response.ok) throw new Error(found.error);
  return found;
}

/** Adds an element to the head, and waits until it is loaded. */
function load(name, attributes) {
  return new Promise((loaded, failed) => {
    const element = Object.assign(document.createElement(name), attributes);
    element.onload = loaded;
    element.onerror = () => failed(new Error(`${attributes.href ?? attributes.src} could not be loaded`));
    document.head.append(element);
  });
}

export async function render() {
  document.documentElement.lang = "en";
  const page = document.body.appendChild(document.createElement("div"));
  page.id = "page";
  try {
    await Promise.all([
      load("link", { rel: "stylesheet", href: at("static/uPlot.min.css") }),
      load("link", { rel: "stylesheet", href: at("static/page.css") }),
      load("script", { src: at("static/uPlot.iife.min.js") }),
    ]);
    await get("runs");
    const { mount } = await import(at("static/page.js"));
    mount(page, {
      live: true,
      runs: () => get("runs"),
      run: (name) => get(`run?name=${encodeURIComponent(name)}`),
    });
  } catch (error) {
    page.textContent = error.message;
  }
}
