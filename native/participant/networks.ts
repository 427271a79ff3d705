/**
 * How our NAT mapped when we were last at this network: a guess, until it has been measured again. Owns the file of it in
 * the state folder. A file that can't be read, or not be written, is none. For native/participant/registration.ts.
 *
 * A network is known by a hash of our address there, the routers and the introducer, so that the file does not say where we
 * have been.
 */
import {
  mkdirSync,
  openSync,
  readFileSync,
  renameSync,
  rmSync,
  statSync,
  closeSync,
  writeSync,
} from "node:fs";
import { dirname, join } from "node:path";
import { type Endpoint, mappings, splitEndpoint } from "../../protocol.ts";
import { defaultGateways } from "../host/routes.ts";
import type { MappingBehaviour } from "../punch/mapping.ts";

const fileName = "networks.json";
const version = 1;
/** The ones that were measured last. */
const maxNetworks = 64;
const maxFileBytes = 64 * 1024;
const dependsOn = ["nothing", "address", "port", "unknown"] as const;
/** As {@link mappings}, and as the steps on the wire. */
const largestStep = 4096;

/** A connection to an introducer. */
interface Connection {
  readonly localAddress: string | undefined;
  readonly remote: Endpoint;
}

interface Known extends MappingBehaviour {
  network: string;
}

export class Networks {
  /** Undefined: nothing is remembered. */
  readonly #file: string | undefined;

  /** `folder`: where the file is, or is made; undefined if the user has none. */
  constructor(folder: string | undefined) {
    this.#file = folder && join(folder, fileName);
  }

  guess(connection: Connection): MappingBehaviour | undefined {
    const network = nameOf(connection);
    const known = this.#read().find((one) => one.network === network);
    if (!known) return undefined;
    const { network: _, ...behaviour } = known;
    return behaviour;
  }

  /** Writes only what is new. */
  learn(connection: Connection, behaviour: MappingBehaviour): void {
    if (behaviour.mapping === "unknown") return;
    const network = nameOf(connection);
    const all = this.#read();
    const before = all.find((one) => one.network === network);
    const { mapping, step, isPreserved, dependsOn } = behaviour;
    const known = { network, mapping, step, isPreserved, dependsOn };
    if (Bun.deepEquals(before, known)) return;
    this.#write([known, ...all.filter((one) => one !== before)].slice(0, maxNetworks));
  }

  #read(): Known[] {
    if (this.#file === undefined) return [];
    try {
      const facts = statSync(this.#file);
      if (!facts.isFile() || facts.size > maxFileBytes) return []; // reading a FIFO would wait
      const read = JSON.parse(readFileSync(this.#file, "utf8")) as { version?: unknown; networks?: unknown };
      if (read?.version !== version || !Array.isArray(read.networks)) return [];
      return read.networks.slice(0, maxNetworks).filter(isKnown);
    } catch {
      return [];
    }
  }

  #write(networks: Known[]): void {
    if (this.#file === undefined) return;
    try {
      replace(this.#file, JSON.stringify({ version, networks }));
    } catch {
      // Then the next program has no guess.
    }
  }
}

/** Other programs read either the old file or the new one. */
function replace(file: string, text: string): void {
  const fresh = `${file}.${process.pid}`;
  mkdirSync(dirname(file), { recursive: true, mode: 0o700 });
  const fd = openSync(fresh, "wx", 0o600);
  try {
    writeSync(fd, text);
    renameSync(fresh, file);
  } catch (error) {
    rmSync(fresh, { force: true });
    throw error;
  } finally {
    closeSync(fd);
  }
}

function nameOf({ localAddress = "", remote }: Connection): string {
  const parts = [localAddress, ...defaultGateways(), splitEndpoint(remote).address];
  return new Bun.CryptoHasher("sha256").update(JSON.stringify(parts)).digest("hex").slice(0, 32);
}

function isKnown(one: unknown): one is Known {
  if (typeof one !== "object" || one === null) return false;
  const { network, mapping, step, isPreserved, dependsOn: of } = one as Record<string, unknown>;
  return (
    typeof network === "string" &&
    mappings.some((known) => known === mapping && known !== "unknown") &&
    Number.isInteger(step) &&
    Math.abs(step as number) <= largestStep &&
    typeof isPreserved === "boolean" &&
    dependsOn.some((known) => known === of)
  );
}
