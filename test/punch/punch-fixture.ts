/** A punch in a process that has no descriptor left when a stranger connects; afterwards it has some, and links. */
import { closeSync, openSync } from "node:fs";
import { makeIdentity } from "../../native/secure/identity.ts";
import { Credentials } from "../../native/secure/tls.ts";
import type { Link } from "../../native/session/link.ts";
import { Targets } from "../../native/punch/targets.ts";
import type { PunchOptions } from "../../native/punch/punch.ts";
import { PunchPort } from "../../native/punch/punch-port.ts";
import { Socket } from "../../native/host/socket.ts";
import type { Role } from "../../protocol.ts";
import { bondOf, linkOn } from "../session/story-fixture.ts";
import { loopback, openSockets, until } from "../native-fixture.ts";
import { patienceMs } from "../patience-fixture.ts";

const identity = makeIdentity();
const credentials = new Credentials(identity);

function makeHost() {
  const control = Socket.open(4);
  const port = control.bind(0);
  control.shareport();
  return { port, punchPort: new PunchPort(port, credentials, new Targets()) };
}

function exhaust(): number[] {
  const held: number[] = [];
  for (;;) {
    try {
      held.push(openSync("/dev/null", "r"));
    } catch {
      return held;
    }
  }
}

const [alice, bob] = [makeHost(), makeHost()];
const options = (peer: { port: number }, role: Role): Omit<PunchOptions, "onLinked" | "onFailed"> => ({
  introduction: { role, token: "0".repeat(32) },
  bond: bondOf(identity, identity),
  candidates: [{ endpoint: loopback(peer.port), route: "private" }],
  startInMs: 0,
  isReachable: true,
  deadlineMs: patienceMs,
});

const before = openSockets();
using stranger = Socket.open(4);
const failed = Promise.withResolvers<string>();
alice.punchPort.punch({
  ...options(bob, "controlling"),
  deadlineMs: 300,
  onLinked: () => failed.resolve("linked with nobody"),
  onFailed: (reason) => failed.resolve(reason),
});
const held = exhaust();
stranger.connect(loopback(alice.port));
const reason = await failed.promise;
for (const fd of held) closeSync(fd);
console.log(reason);
stranger.close();

const link = (host: typeof alice, peer: typeof alice, role: Role) =>
  new Promise<Link>((resolve, reject) =>
    host.punchPort.punch({
      ...options(peer, role),
      onLinked: (channel) => void linkOn(channel).then(({ link }) => resolve(link), reject),
      onFailed: (why, detail) => reject(new Error(`${why}: ${detail}`)),
    }),
  );
const links = await Promise.all([link(alice, bob, "controlling"), link(bob, alice, "controlled")]);
console.log("linked");
await Promise.all(links.map((one) => one.close("disconnected")));
await until("all sockets are closed", () => openSockets().every((socket) => before.includes(socket)));
console.log("no socket left");
process.exit(0);
