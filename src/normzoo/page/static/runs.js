// Which runs there are, which are chosen, and their data.
import { guess } from "./picker.js";

const AT_FIRST = 12; // runs shown until the user chooses: 200 would take long to load

/** The runs of a source. `said(text)` receives what to tell the user, "" for nothing. */
export class Runs {
  constructor(source, state, said) {
    Object.assign(this, { source, state, said, known: [], loaded: new Map(), failed: "" });
  }

  /** Looks for new and changed runs; returns whether there are any, or some failed the last time. */
  async look() {
    const known = await this.source.runs();
    const versions = new Map(known.map((run) => [run.name, run.version]));
    for (const { name, version } of this.known) if (versions.get(name) !== version) this.loaded.delete(name);
    const changed = JSON.stringify(known) !== JSON.stringify(this.known) || this.failed !== "";
    this.known = known;
    return changed;
  }

  /** Names of the chosen runs: those of the URL, else all, or the first of every norm where there are many. */
  chosen() {
    const names = this.known.map((run) => run.name);
    const { shown, hidden } = this.state;
    if (shown) return new Set(names.filter((name) => shown.includes(name)));
    if (hidden.length || names.length <= AT_FIRST) return new Set(names.filter((name) => !hidden.includes(name)));
    const norms = names.map((name) => guess(name).norm);
    const turn = (i) => norms.slice(0, i).filter((norm) => norm === norms[i]).length;
    const inTurn = [...names.keys()].sort((a, b) => turn(a) - turn(b));
    return new Set(inTurn.slice(0, AT_FIRST).map((i) => names[i]));
  }

  /** Takes the user's choice. The URL names those that are shown or those that are hidden, whichever are fewer. */
  choose(names) {
    const hidden = this.known.map((run) => run.name).filter((name) => !names.includes(name));
    const short = hidden.length < names.length && (hidden.length > 0 || this.known.length <= AT_FIRST);
    Object.assign(this.state, short ? { hidden, shown: null } : { hidden: [], shown: names });
  }

  /** Loads the chosen runs that are not loaded yet. A run that cannot be read does not keep the others back. */
  async load() {
    const missing = [...this.chosen()].filter((name) => !this.loaded.has(name));
    if (missing.length && !this.loaded.size) this.said(`Loading ${missing.length === 1 ? missing[0] : `${missing.length} runs`}…`);
    const load = async (name) => {
      try {
        this.loaded.set(name, await this.source.run(name));
        return "";
      } catch (error) {
        return `${name} could not be read: ${error.message}`;
      }
    };
    this.failed = (await Promise.all(missing.map(load))).filter(Boolean).join(" ");
    this.said(this.failed);
  }

  /** All runs, with norm and seed as far as their names tell them before they are loaded. */
  all() {
    return this.known.map(({ name }) => ({ ...guess(name), ...this.loaded.get(name), name }));
  }

  /** The loaded runs, in the order of the source. */
  ready() {
    return this.known.map(({ name }) => this.loaded.get(name)).filter(Boolean);
  }
}
