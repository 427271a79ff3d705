/**
 * Who floods, for `bench flood`: one kind of flood from a list of addresses, as fast as the introducer lets it, until it
 * is killed. On SIGUSR2 it says how often it has tried.
 */
import type { Socket } from "bun";
import { encode, protocolVersion, type Endpoint, type ToIntroducer } from "../../protocol.ts";
import { connectFrom } from "./crowd.ts";

/** Connections that one address holds, and all of them together: descriptors are finite here, too. */
const mostPerAddress = 300;
const most = 12_000;
/** Opened before anybody else of this process gets a turn. */
const slice = 32;

const [kind = "", port = "", probePort = "", victim = "", first = "", count = ""] = process.argv.slice(2);
const addresses = Array.from({ length: Number(count) }, (_, index) =>
  first.includes(":")
    ? first.replace("::", `:${index.toString(16)}::`)
    : first.replace(/\d+$/, (last) => String(Number(last) + index)),
);
const perAddress = Math.min(mostPerAddress, Math.floor(most / addresses.length));
let tries = 0;
process.on("SIGUSR2", () => console.log(tries));

const hex = (digits: number) => crypto.randomUUID().replaceAll("-", "").repeat(2).slice(0, digits);

function registration(room: string): string {
  return encode({
    type: "register",
    version: protocolVersion,
    name: `mallory-${hex(8)}`,
    room,
    instance: hex(16),
    fingerprint: hex(64),
    private: ["192.168.1.5:4000" as Endpoint],
    links: [],
  });
}

/** What is done on one connection. Its sources of lines end with it. */
interface Visit {
  open?(socket: Socket): void;
  line?(socket: Socket, line: string): void;
  again?(socket: Socket): void;
}

/** Keeps so many connections of an address open, each for as long as it is let. */
async function keep(address: string, connections: number, to: number, visit: () => Visit): Promise<never> {
  const open = new Set<{ socket: Socket; visit: Visit }>();
  for (;;) {
    for (let n = 0; n < slice && open.size < connections; n++) {
      const one: { socket?: Socket; visit: Visit } = { visit: visit() };
      tries++;
      let rest = "";
      const over = () => void open.delete(one as { socket: Socket; visit: Visit });
      one.socket = await connectFrom(address, to, {
        data(socket, chunk) {
          const lines = (rest + chunk.toString()).split("\n");
          rest = lines.pop()!;
          for (const line of lines) one.visit.line?.(socket, line);
        },
        close: over,
        error: over,
        end: (socket) => socket.terminate(),
      });
      open.add(one as { socket: Socket; visit: Visit });
      one.visit.open?.(one.socket);
    }
    await Bun.sleep(1);
    for (const { socket, visit } of open) visit.again?.(socket);
  }
}

const say = (socket: Socket, message: ToIntroducer) => {
  tries++;
  socket.write(encode(message));
};

/** Opened, and closed as soon as there are many. */
const connections = (): Visit => ({ again: (socket) => Math.random() < 0.2 && void socket.terminate() });

/** A line that never ends, and grows. */
function halfLine(): Visit {
  return {
    open: (socket) => void socket.write(registration("lobby").slice(0, -10) + "x".repeat(16_000)),
    again: (socket) => void (Math.random() < 0.1 && socket.write("x".repeat(1000))),
  };
}

/** Comes to where the honest are and leaves at once. */
const registrations = (): Visit => ({
  open: (socket) => void socket.write(registration("lobby")),
  line: (socket) => void socket.terminate(),
});

/** Everybody who gets in asks for the same one, again and again. */
function introductions(): Visit {
  let isIn = false;
  return {
    open: (socket) => void socket.write(registration("lobby")),
    line: (_, line) => void (isIn ||= line.startsWith('{"type":"registered')),
    again: (socket) => isIn && say(socket, { type: "connect", peer: Number(victim) }),
  };
}

const probes = (): Visit => ({});

/** Members of one room take relays from each other, one side of each only. */
function relays(address: string): Visit {
  const peers = new Set<number>();
  let askAt = 0;
  return {
    open: (socket) => void socket.write(registration(`relays ${address}`)),
    line(socket, line) {
      for (const [, id] of line.matchAll(/"peer":\{"id":(\d+)|"peers":\[\{"id":(\d+)/g))
        peers.add(Number(id));
      const [, token = ""] = /^\{"type":"relay".*"token":"(\w+)"/.exec(line) ?? [];
      if (token === "") return;
      tries++;
      const open = (own: Socket) => own.write(encode({ type: "relay", token }));
      void connectFrom(address, Number(port), { data() {} }).then(open);
      void socket;
    },
    again(socket) {
      if (performance.now() < askAt) return;
      askAt = performance.now() + 100;
      for (const peer of peers) say(socket, { type: "connect", peer });
    },
  };
}

/** Says as much as it can. */
function lines(): Visit {
  const text = encode({ type: "echo", text: "x".repeat(100) }).repeat(50);
  let isIn = false;
  return {
    open: (socket) => void socket.write(registration(hex(8))),
    line: (_, line) => void (isIn ||= line.startsWith('{"type":"registered')),
    again(socket) {
      if (!isIn) return;
      tries += 50;
      socket.write(text);
    },
  };
}

const main = Number(port);
const floods: Record<string, (address: string) => Promise<never>> = {
  connections: (address) => keep(address, perAddress, main, connections),
  "half lines": (address) => keep(address, perAddress, main, halfLine),
  registrations: (address) => keep(address, Math.min(16, perAddress), main, registrations),
  introductions: (address) => keep(address, Math.min(4, perAddress), main, introductions),
  probes: (address) => keep(address, perAddress, Number(probePort), probes),
  relays: (address) => keep(address, Math.min(8, perAddress), main, () => relays(address)),
  lines: (address) => keep(address, Math.min(32, perAddress), main, lines),
};
await Promise.all(addresses.map(floods[kind]!));
