// Which runs there are, which are chosen, and their data.
import { leadingArms } from "./compared.js";
import { guess } from "./picker.js";

const AT_FIRST = 12; // runs shown until the user chooses: 200 would take long to load
const MOST_ARMS = 7; // of a comparison, at first: as many as there are colours

/** Run -> its norm, seed and the name of its arm. */
function armsByRun(comparison) {
  const ofArm = (arm) => arm.runs.map((name, i) => [name, { norm: arm.norm, seed: arm.seeds[i] ?? null, arm: arm.name }]);
  return new Map((comparison?.arms ?? []).flatMap(ofArm));
}

/** The runs of a source. `said(text)` receives what to tell the user, "" for nothing. */
export class Runs {
  constructor(source, state, said) {
    Object.assign(this, { source, state, said, known: [], loaded: new Map(), failed: "", comparison: null, arms: new Map() });
  }

  /** Looks for new and changed runs; returns whether there are any, or some failed the last time. */
  async look() {
    const known = await this.source.runs();
    const versions = new Map(known.map((run) => [run.name, run.version]));
    for (const { name, version } of this.known) if (versions.get(name) !== version) this.loaded.delete(name);
    const comparison = (await this.source.comparison?.()) ?? null;
    const changed = JSON.stringify([known, comparison]) !== JSON.stringify([this.known, this.comparison]) || this.failed !== "";
    Object.assign(this, { known, comparison, arms: armsByRun(comparison) });
    return changed;
  }

  /** Names of the chosen runs: those of the URL, else all, or where there are many those of the best arms, or the first of every norm. */
  chosen() {
    const names = this.known.map((run) => run.name);
    const { shown, hidden } = this.state;
    if (shown) return new Set(names.filter((name) => shown.includes(name)));
    if (hidden.length || names.length <= AT_FIRST) return new Set(names.filter((name) => !hidden.includes(name)));
    if (this.comparison) {
      const best = new Set(
        leadingArms(this.comparison)
          .slice(0, MOST_ARMS)
          .flatMap((arm) => arm.runs),
      );
      return new Set(names.filter((name) => best.has(name)));
    }
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
        const run = await this.source.run(name);
        this.loaded.set(name, { ...run, norm: this.arms.get(name)?.norm ?? run.norm });
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
    return this.known.map(({ name }) => ({ ...guess(name), ...this.loaded.get(name), ...this.arms.get(name), name }));
  }

  /** The loaded runs, in the order of the source. */
  ready() {
    return this.known.map(({ name }) => this.loaded.get(name)).filter(Boolean);
  }
}
