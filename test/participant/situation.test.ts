/** A situation, with an introducer of the test's at one of this host's own addresses. */
import { expect } from "bun:test";
import { Gate } from "../../native/punch/gate.ts";
import { hostAddresses } from "../../native/host/interfaces.ts";
import { Socket } from "../../native/host/socket.ts";
import type { Membership } from "../../native/participant/membership.ts";
import { Situation } from "../../native/participant/situation.ts";
import { addressScope, encode, formatEndpoint } from "../../protocol.ts";
import { Bait } from "../hostile/wire.ts";
import { loopback } from "../native-fixture.ts";
import { testNeeding } from "../needing-fixture.ts";
import { aliceIdentity, credentialsOf } from "../session/story-fixture.ts";

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
        ...{ mapsPort: false, takesRelay: true, gate: new Gate() },
        ...{ emit() {}, situationChanged() {}, addressChanged() {} },
      },
    );
    const { hairpinning } = await situation.nat();
    await situation.close("the test is over");
    expect(probes.total).toBeGreaterThan(0);
    expect([hairpinning, victim.total]).toEqual([false, 0]);
  },
);
