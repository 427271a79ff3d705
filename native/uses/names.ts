/**
 * Names of targets, looked up for peers. A name is looked up at most once in a while, whoever asks, and each peer has a
 * share of all look-ups. Owns what is remembered. It knows no rule: its caller asks only for names that may be looked up.
 * For native/uses/serve.ts.
 */
import { canonicalAddress } from "../../protocol.ts";
import { FairShare } from "../shares/fair-share.ts";

/** Returns the addresses of a name. Throws if it has none. */
export type Resolve = (name: string) => Promise<string[]>;

const resolveBySystem: Resolve = async (name) => {
  const { lookup } = process.getBuiltinModule("node:dns/promises");
  return (await lookup(name, { all: true })).map(({ address }) => address);
};

/** An answer counts for so long. So a flood of streams for one name costs one look-up. */
const rememberedMs = 5_000;
/** Look-ups at once. Each may hold a thread until the name server answers. */
const maxUnderWay = 16;
/** Look-ups in a minute. With `*`, peers may ask for any name. */
const maxPerMinute = 600;
const minuteMs = 60_000;

/** A name could not be looked up. The text names no address. */
export class NameError extends Error {}

interface Known {
  addresses: Promise<string[]>;
  /** The answer counts until then (performance.now()); undefined while the look-up is under way. */
  until: number | undefined;
}

export class Names {
  readonly #resolve: Resolve;
  readonly #known = new Map<string, Known>();
  readonly #underWay = new FairShare(maxUnderWay, 1 / 2);
  readonly #perMinute = new FairShare(maxPerMinute, 1 / 8);

  constructor(resolve: Resolve = resolveBySystem) {
    this.#resolve = resolve;
  }

  /** Its addresses, canonical, each once. Rejects with a {@link NameError}. A name that a rule names takes no share. */
  async addresses(name: string, peer: string, isOfRule = false): Promise<string[]> {
    const known = this.#known.get(name);
    if (known && !isOver(known)) return known.addresses;
    this.#forget();
    const ended = isOfRule ? () => {} : this.#mayAsk(peer);
    if (!ended) throw new NameError("too many names are looked up for you; try again in a minute");
    const asked: Known = { addresses: this.#ask(name), until: undefined };
    this.#known.set(name, asked);
    const settled = () => {
      ended();
      asked.until = performance.now() + rememberedMs;
    };
    asked.addresses.then(settled, settled);
    return asked.addresses;
  }

  /** Counts a look-up, and returns what to call when it is answered. Undefined if the peer has its share. */
  #mayAsk(peer: string): (() => void) | undefined {
    const ended = this.#underWay.take(peer);
    const later = ended && this.#perMinute.take(peer);
    if (later) setTimeout(later, minuteMs).unref();
    else ended?.();
    return later && ended;
  }

  async #ask(name: string): Promise<string[]> {
    const found = await this.#resolve(name).catch((error: NodeJS.ErrnoException) => {
      throw new NameError(`${name} can't be resolved (${error.code ?? "no reason was given"})`);
    });
    const addresses = found.map((text) => canonicalAddress(text)?.address).filter((one) => one !== undefined);
    if (addresses.length === 0) throw new NameError(`${name} has no address`);
    return [...new Set(addresses)];
  }

  #forget(): void {
    for (const [name, known] of this.#known) if (isOver(known)) this.#known.delete(name);
  }
}

/** One for the whole program, as its resolver is. */
export const namesOfAll = new Names();

const isOver = ({ until }: Known): boolean => until !== undefined && performance.now() >= until;
