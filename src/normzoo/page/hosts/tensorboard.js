// The page in TensorBoard's tab Normalization, which calls `render` in a frame of its own.

const at = (path) => new URL(path, import.meta.url);

/** A route of the plugin. Its error is a sentence for the user. */
async function get(route) {
  const response = await fetch(at(route));
  const found = await response.json();
  if (!response.ok) throw new Error(found.error);
  return found;
}

/** Adds a style sheet, and waits until it is loaded. */
function style(href) {
  return new Promise((loaded, failed) => {
    const link = Object.assign(document.createElement("link"), { rel: "stylesheet", href, onload: loaded });
    link.onerror = () => failed(new Error(`${href} could not be loaded`));
    document.head.append(link);
  });
}

export async function render() {
  document.documentElement.lang = "en";
  const page = document.body.appendChild(document.createElement("div"));
  page.id = "page";
  try {
    const [{ mount }] = await Promise.all([import(at("static/page.js")), style(at("static/page.css")), get("runs")]);
    mount(page, {
      live: true,
      comparison: () => get("comparison"),
      runs: () => get("runs"),
      run: (name) => get(`run?name=${encodeURIComponent(name)}`),
    });
  } catch (error) {
    page.textContent = error.message;
    page.style.cssText = "margin: 2rem; font: 1rem/1.5 system-ui, sans-serif; color: #646b76";
  }
}
