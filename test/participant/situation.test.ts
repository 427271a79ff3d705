/** A situation, with an introducer of the test's at one of this host's own addresses. */
import { expect, setDefaultTimeout, test } from "bun:test";
import { Gate } from "../../native/punch/gate.ts";
import { hostAddresses } from "../../native/host/interfaces.ts";
import { Socket } from "../../native/host/socket.ts";
import type { Membership } from "../../native/participant/membership.ts";
import { Situation } from "../../native/participant/situation.ts";
import {
  addressScope,
  encode,
  type Endpoint,
  type Filtering,
  formatEndpoint,
  type ToIntroducer,
} from "../../protocol.ts";
import { Bait } from "../hostile/wire.ts";
import { loopback, until } from "../native-fixture.ts";
import { testNeeding } from "../needing-fixture.ts";
import { aliceIdentity, credentialsOf } from "../session/story-fixture.ts";
import { testMs } from "../patience-fixture.ts";

setDefaultTimeout(testMs);

const { fingerprint } = aliceIdentity;
const self = { fingerprint, name: "alice", instance: "a".repeat(16) };
const membership = { credentials: credentialsOf(aliceIdentity), member: self, bondKey: new Uint8Array(32) };
const far = hostAddresses().find(
  ({ address }) => !address.includes(":") && !["loopback", "unusable"].includes(addressScope(address)),
)?.address;
const nowhere = far === undefined ? "this host has loopback only" : undefined;

testNeeding(nowhere)(
  "an introducer that is no host of ours can't have `nat` call what is on our host",
  async () => {
    using control = Socket.open(4);
    const port = control.bind(0);
    control.shareport();
    using victim = await Bait.listen("127.0.0.1");
    // Whatever comes is told that it comes from there.
    const tells = encode({ type: "observed", endpoint: loopback(victim.port) });
    using probes = await Bait.listen(far!, (socket) => void socket.write(tells));
    const situation: Situation = new Situation(
      {
        ...{ remote: formatEndpoint(far!, probes.port), port, localAddress: far },
        send({ type }) {
          if (type === "connect-back")
            situation.questions.answered({ type: "filtering", filtering: "refused" });
        },
      },
      {
        ...{ type: "registered", id: 1, name: "alice", room: "lobby", alternates: [], private: [] },
        ...{ public: loopback(victim.port), probePorts: [probes.port] },
      },
      membership as unknown as Membership,
      {
        ...{
          mapsPort: false,
          isForwarded: false,
          takes: "any",
          gate: new Gate(),
          guess: () => undefined,
          measured() {},
        },
        ...{ emit() {}, situationChanged() {}, addressChanged() {} },
      },
    );
    const { hairpinning } = await situation.nat();
    await situation.close("the test is over");
    expect(probes.total).toBeGreaterThan(0);
    expect([hairpinning, victim.total]).toEqual([false, 0]);
  },
);

/** One whose introducer has two probe ports, which say what `seen` does of each probe; or hang up. */
async function situated(seen: (probe: number, control: Endpoint) => Endpoint | undefined) {
  const control = Socket.open(4);
  const port = control.bind(0);
  control.shareport();
  const own = loopback(port);
  let probes = 0;
  const answer = (socket: NodeJS.WritableStream & { destroy(): void }) => {
    const endpoint = seen(++probes, own);
    if (endpoint) socket.write(encode({ type: "observed", endpoint }));
    else socket.destroy();
  };
  const ports = [await Bait.listen("127.0.0.1", answer), await Bait.listen("127.0.0.1", answer)];
  const sent: ToIntroducer[] = [];
  const told = { filtering: "refused" as Filtering, changes: 0 };
  const situation: Situation = new Situation(
    {
      ...{ remote: loopback(ports[0]!.port), port, localAddress: "127.0.0.1" },
      send(message) {
        sent.push(message);
        if (message.type === "connect-back")
          situation.questions.answered({ type: "filtering", filtering: told.filtering });
      },
    },
    {
      ...{ type: "registered", id: 1, name: "alice", room: "lobby", alternates: [], private: [own] },
      ...{ public: own, probePorts: ports.map((one) => one.port) },
    },
    membership as unknown as Membership,
    {
      ...{
        mapsPort: false,
        isForwarded: false,
        takes: "any",
        gate: new Gate(),
        guess: () => undefined,
        measured() {},
      },
      ...{ emit() {}, situationChanged: () => void told.changes++, addressChanged() {} },
    },
  );
  return {
    ...{ situation, told },
    mappings: () => sent.filter(({ type }) => type === "mapping"),
    async [Symbol.asyncDispose]() {
      await situation.close("the test is over");
      for (const one of ports) one[Symbol.dispose]();
      control.close();
    },
  };
}

const endpointIndependent = { type: "mapping", mapping: "endpoint-independent" } as const;

test("a mapping that could not be measured is measured again, until it is known", async () => {
  await using scene = await situated((probe, control) => (probe <= 2 ? undefined : control));
  scene.situation.begin();
  await until("it was measured", () => scene.mappings().length === 1);
  expect(scene.mappings()).toEqual([{ type: "mapping", mapping: "unknown" }]);
  await until("it was measured again", () => scene.mappings().length === 2);
  expect(scene.mappings()[1]).toEqual(endpointIndependent);
});

test("a mapping that has changed is told when it is measured anew, and where a NAT that counts stands, too", async () => {
  let counted = 50_000;
  let counts = false;
  await using scene = await situated((_, control) => (counts ? loopback(++counted) : control));
  scene.situation.begin();
  await until("it was measured", () => scene.mappings().length === 1);
  expect([scene.mappings(), scene.told.changes]).toEqual([[endpointIndependent], 0]);
  counts = true;
  await scene.situation.measureAnew();
  const prediction = { endpoint: expect.stringMatching(/^127\.0\.0\.1:5000[34]$/), step: 1 };
  expect(scene.mappings()[1]).toEqual({ type: "mapping", mapping: "sequential", prediction } as never);
  expect([scene.mappings().length, scene.told.changes]).toEqual([2, 1]);
});

test("whoever is let in where he is can link with everyone, and others as their NATs allow", async () => {
  await using scene = await situated((_, control) => control);
  const ways = async (filtering: Filtering) => {
    scene.told.filtering = filtering;
    return (await scene.situation.nat()).expected.map(({ way }) => way);
  };
  expect(await ways("let-in")).toEqual(["direct", "direct", "direct", "direct"]);
  expect(await ways("refused")).toEqual(["direct", "direct", "predicted", "direct"]);
});
