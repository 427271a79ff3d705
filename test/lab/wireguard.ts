/** WireGuard in user space (Debian's wireguard-go) as an ordinary program on a host of the lab. Its peer is behind a port of UDP. */
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { until } from "../native-fixture.ts";
import { missing, unlessRequired } from "../needing-fixture.ts";
import type { Host } from "./lab.ts";

/** Why it can't run here, or undefined when it can. */
export const noWireGuard: string | undefined = unlessRequired(
  missing(["wireguard-go", "wg"], "packages wireguard-go, wireguard-tools"),
);

export interface Keys {
  private: string;
  public: string;
}

export function newKeys(): Keys {
  const made = (command: string, input = "") =>
    Bun.spawnSync(["wg", command], { stdin: Buffer.from(input) })
      .stdout.toString()
      .trim();
  const key = made("genkey");
  return { private: key, public: made("pubkey", key) };
}

export interface WireGuardOptions {
  name: string;
  keys: Keys;
  /** Its own address in the network that it makes, and the peer's. */
  address: string;
  peer: { key: string; address: string; port?: number };
  port: number;
}

export class WireGuard implements AsyncDisposable {
  readonly #program: Bun.Subprocess;
  readonly #folder: string;

  private constructor(program: Bun.Subprocess, folder: string) {
    this.#program = program;
    this.#folder = folder;
  }

  /** Resolves once its interface is up. Without the peer's port it waits for the peer to speak first. */
  static async start(host: Host, { name, keys, address, peer, port }: WireGuardOptions): Promise<WireGuard> {
    const folder = mkdtempSync(join(tmpdir(), "wireguard-"));
    const file = join(folder, "key");
    writeFileSync(file, keys.private, { mode: 0o600 });
    // The socket by which `wg` speaks to it.
    await host.run(["mkdir", "-p", "/run/wireguard"]);
    const program = host.spawn(["wireguard-go", "-f", name], {
      ...({ stdin: "ignore", stdout: "ignore", stderr: "ignore" } as const),
    });
    const one = new WireGuard(program, folder);
    const isUp = async () => (await host.run(["ls", "/run/wireguard"])).includes(`${name}.sock`);
    let hasCome = false;
    const looking = setInterval(() => void isUp().then((is) => (hasCome ||= is)), 100);
    await until(`${name} is there`, () => hasCome).finally(() => clearInterval(looking));
    const endpoint = peer.port === undefined ? [] : ["endpoint", `127.0.0.1:${peer.port}`];
    const own = ["wg", "set", name, "private-key", file, "listen-port", `${port}`];
    await host.run([...own, "peer", peer.key, "allowed-ips", `${peer.address}/32`, ...endpoint]);
    await host.run(["ip", "address", "add", `${address}/24`, "dev", name]);
    await host.run(["ip", "link", "set", name, "up"]);
    return one;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#program.kill();
    await this.#program.exited;
    rmSync(this.#folder, { recursive: true, force: true });
  }
}
