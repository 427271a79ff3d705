/**
 * How our NAT mapped when we were last at this network: a guess, until it has been measured again. Owns the file of it in
 * the state folder. A file that can't be read, or not be written, is none. For native/participant/registration.ts.
 *
 * A network is known by a hash of our address there, the routers and the introducer, so that the file does not say where we
 * have been.
 */
import { type Endpoint, mappings, splitEndpoint } from "../../protocol.ts";
import { defaultGateways } from "../host/routes.ts";
import { orNone, StateFile } from "../host/state.ts";
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
  readonly #file: StateFile | undefined;

  /** `folder`: where the file is, or is made; undefined if the user has none. */
  constructor(folder: string | undefined) {
    this.#file = folder === undefined ? undefined : new StateFile(folder, fileName, maxFileBytes);
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
    try {
      const text = orNone(() => this.#file?.read()) ?? "";
      const read = JSON.parse(text) as { version?: unknown; networks?: unknown };
      if (read?.version !== version || !Array.isArray(read.networks)) return [];
      return read.networks.slice(0, maxNetworks).filter(isKnown);
    } catch {
      return [];
    }
  }

  /** If it can't, the next program has no guess. */
  #write(networks: Known[]): void {
    orNone(() => this.#file?.replace(JSON.stringify({ version, networks })));
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
