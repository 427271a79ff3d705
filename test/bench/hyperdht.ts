/**
 * A rival of forwards: TCP connections joined to streams of hyperdht (npm `hyperdht`), as holesail and its like do it: one
 * encrypted stream over UDP for each. Both ends are on this host, with a DHT of their own, so nothing of the public one is
 * asked. It is installed into a folder of its own outside this project, for the time of the measurement, and run by Node: Bun
 * 1.4.5 lacks what its native part calls. For bench forward.
 */
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { isQuick } from "./run.ts";

const version = "6.34.0";
/** `serve PORTS` has a stream for each connection, `listen` what that has told takes connections. Each tells a line. */
const program = `
const HyperDHT = require("hyperdht");
const net = require("net");

const host = "127.0.0.1";
// A stream that is cut off while it is being made rejects somewhere in hyperdht.
process.on("unhandledRejection", () => {});
const tell = (what) => console.log(JSON.stringify(what));
function join(one, other) {
  const cut = () => (one.destroy(), other.destroy());
  for (const each of [one, other]) each.on("error", cut).on("close", cut);
  one.pipe(other).pipe(one);
}
/** The first one in a new DHT may be in vain. */
const opens = (stream) => new Promise((resolve) => {
  stream.on("open", () => (resolve(true), stream.end())).on("error", () => resolve(false));
});
async function serve(ports) {
  const { bootstrap } = await require("hyperdht/testnet")(3, { host });
  const dht = new HyperDHT({ bootstrap, host, ephemeral: false, firewalled: false });
  const keys = await Promise.all(ports.map(async (port) => {
    const serve = (stream) => join(stream, net.connect({ host, port, noDelay: true }));
    const server = dht.createServer({ reusableSocket: true }, serve);
    await server.listen(HyperDHT.keyPair());
    return server.publicKey.toString("hex");
  }));
  tell({ bootstrap, keys });
}
async function listen({ bootstrap, keys }) {
  const dht = new HyperDHT({ bootstrap, host, ephemeral: false, firewalled: false });
  await dht.fullyBootstrapped();
  const connect = (key) => dht.connect(Buffer.from(key, "hex"), { reusableSocket: true });
  for (const key of keys) while (!(await opens(connect(key))));
  const listening = keys.map((key) => new Promise((resolve) => {
    const listener = net.createServer({ noDelay: true }, (socket) => join(socket, connect(key)));
    listener.listen({ host, port: 0, backlog: 4096 }, () => resolve(listener.address().port));
  }));
  tell(await Promise.all(listening));
}
const [role, said] = process.argv.slice(2);
({ serve, listen })[role](JSON.parse(said));
`;

/** Installs it, and runs both ends. */
export class HyperDht implements AsyncDisposable {
  /** Ports of this host that lead to those that were asked for, in the same order; or why there are none. */
  ports: number[] | string = [];
  readonly #folder = mkdtempSync(join(tmpdir(), "bench-hyperdht-"));
  readonly #programs: Bun.Subprocess[] = [];

  static async start(ports: readonly number[]): Promise<HyperDht> {
    const rival = new HyperDht();
    const problem = isQuick ? "nothing is downloaded for --quick" : await rival.#install();
    rival.ports = problem ?? JSON.parse(await rival.#end("listen", await rival.#end("serve", ports)));
    return rival;
  }

  /** Returns why it can't be. */
  async #install(): Promise<string | undefined> {
    if (!Bun.which("node")) return "Node is not installed";
    await Bun.write(join(this.#folder, "package.json"), "{}");
    await Bun.write(join(this.#folder, "end.cjs"), program);
    const { exitCode, stderr } = await Bun.$`${process.execPath} add hyperdht@${version}`
      .cwd(this.#folder)
      .nothrow()
      .quiet();
    return exitCode === 0
      ? undefined
      : `it can't be installed (${stderr.toString().trim().split("\n").at(-1)})`;
  }

  /** What that end tells. */
  async #end(role: string, said: unknown): Promise<string> {
    const command = ["node", "end.cjs", role, typeof said === "string" ? said : JSON.stringify(said)];
    const options = { cwd: this.#folder, stdin: "ignore", stdout: "pipe", stderr: "inherit" } as const;
    const running = Bun.spawn(command, options);
    this.#programs.push(running);
    const { value } = await running.stdout.pipeThrough(new TextDecoderStream()).getReader().read();
    if (value === undefined) throw new Error(`hyperdht: ${role} has ended`);
    return value;
  }

  get programs(): number[] {
    return this.#programs.map(({ pid }) => pid);
  }

  async [Symbol.asyncDispose](): Promise<void> {
    for (const running of this.#programs) running.kill("SIGKILL");
    await Promise.all(this.#programs.map(({ exited }) => exited));
    rmSync(this.#folder, { recursive: true });
  }
}
