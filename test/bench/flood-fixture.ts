/**
 * Who floods, for `bench flood` and the lab: one kind of flood, or all, from a list of addresses, as fast as the
 * introducer lets it, until it is killed. On SIGUSR2 it says how often it has tried.
 */
import type { Socket } from "bun";
import { encode, protocolVersion, type Endpoint, type ToIntroducer } from "../../protocol.ts";
import { connectFrom } from "./crowd.ts";
import { address4, address6, introducerPort, probePort } from "./program.ts";

/** Connections that one address holds, and all of them together: descriptors are finite here, too. */
const mostPerAddress = 300;
const most = 12_000;
/** Opened before anybody else of this process gets a turn. */
const slice = 32;
/** The introducer has forgotten most of what an address took of its time. */
const thoughtBetterMs = 500;

const [kind = "", victim = "", family = "", count = ""] = process.argv.slice(2);
const addresses = Array.from({ length: Number(count) }, (_, index) =>
  family === "6" ? address6(index) : address4(100, index),
);
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

/**
 * Keeps so many connections of an address open, each for as long as it is let. An address from which one was closed
 * without a word waits until it is thought better of: so it gets in more than by trying on and on.
 */
async function keep(address: string, { most, to = introducerPort, visit }: Kind): Promise<never> {
  const open = new Set<One>();
  let untilMs = 0;
  for (;;) {
    for (let n = 0; n < slice && open.size < most && performance.now() >= untilMs; n++) {
      const one = await come(address, to, visit(address), (hasHeard) => {
        open.delete(one);
        if (!hasHeard && visit !== connections) untilMs = performance.now() + thoughtBetterMs;
      });
      open.add(one);
    }
    await Bun.sleep(1);
    for (const { socket, visit: own } of open) own.again?.(socket);
  }
}

async function come(
  address: string,
  to: number,
  visit: Visit,
  over: (hasHeard: boolean) => void,
): Promise<One> {
  let [rest, hasHeard] = ["", false];
  tries++;
  const socket = await connectFrom(address, to, {
    data(socket, chunk) {
      hasHeard = true;
      const lines = (rest + chunk.toString()).split("\n");
      rest = lines.pop()!;
      for (const line of lines) visit.line?.(socket, line);
    },
    close: () => over(hasHeard),
    error: () => {},
    end: (socket) => socket.terminate(),
  });
  visit.open?.(socket);
  return { socket, visit };
}

const say = (socket: Socket, message: ToIntroducer) => {
  tries++;
  socket.write(encode(message));
};

interface One {
  socket: Socket;
  visit: Visit;
}

/** How many connections of an address it takes, and where they go. */
interface Kind {
  most: number;
  to?: number;
  visit: (address: string) => Visit;
}

/** Opened, and closed as soon as there are many. */
const connections = (): Visit => ({ again: (socket) => Math.random() < 0.2 && void socket.terminate() });

/** Says nothing, until it is sent away. */
const silence = (): Visit => ({});

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
      void connectFrom(address, introducerPort, { data() {} }).then(open);
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

const floods: Record<string, Kind> = {
  connections: { most: mostPerAddress, visit: connections },
  silence: { most: mostPerAddress, visit: silence },
  "half lines": { most: mostPerAddress, visit: halfLine },
  registrations: { most: 16, visit: registrations },
  introductions: { most: 4, visit: introductions },
  probes: { most: mostPerAddress, to: probePort, visit: probes },
  relays: { most: 8, visit: relays },
  lines: { most: 32, visit: lines },
};
const wanted = kind === "all" ? Object.values(floods) : [floods[kind]!];
/** Where there are addresses enough, each does one thing: whoever does all is sent away for one of them. */
const own = (index: number) => (addresses.length < wanted.length ? wanted : [wanted[index % wanted.length]!]);
const share = Math.floor(most / addresses.length / own(0).length);
await Promise.all(
  addresses.flatMap((address, index) =>
    own(index).map((one) => keep(address, { ...one, most: Math.min(one.most, share) })),
  ),
);
