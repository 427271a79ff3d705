/** What a registration makes of us, without an introducer: a test says what it sent, and reads what we say to it. */
import { describe, expect, test } from "bun:test";
import type { ParticipantEvent } from "../../native/participant/events.ts";
import { Membership } from "../../native/participant/membership.ts";
import { Questions } from "../../native/participant/questions.ts";
import { type Registered, Situation } from "../../native/participant/situation.ts";
import { Gate } from "../../native/punch/gate.ts";
import { formatEndpoint, splitEndpoint, type ToIntroducer } from "../../protocol.ts";
import { refusing } from "../native-fixture.ts";
import { aliceIdentity } from "../session/story-fixture.ts";

const at = (address: string, port: number) => formatEndpoint(address, port);

async function situationOf(told: Partial<Registered> = {}, from = "203.0.113.9") {
  const membership = new Membership(aliceIdentity, "alice", "lobby");
  await membership.room();
  const events: ParticipantEvent[] = [];
  const sent: ToIntroducer[] = [];
  const message: Registered = {
    ...{ type: "registered", id: 1, name: "alice", room: "r", private: [], probePorts: [], alternates: [] },
    public: at("127.0.0.1", 4_000),
    ...told,
  };
  const connection = {
    remote: at(from, 7_000),
    port: splitEndpoint(refusing()).port,
    send: (one: ToIntroducer) => void sent.push(one),
  };
  const situation = new Situation(connection, message, membership, {
    emit: (event) => void events.push(event),
    mapsPort: true,
    takesRelay: true,
    gate: new Gate(),
    situationChanged: () => {},
    addressesChanged: () => {},
  });
  return { situation, ground: situation.ground, events, sent };
}

describe("a situation", () => {
  test("has what the registration said; nothing is sent, asked or told before it begins", async () => {
    const { ground, events, sent } = await situationOf({ probePorts: [7_001, 7_002], probeToken: "ab" });
    expect(ground.probes).toEqual([at("203.0.113.9", 7_001), at("203.0.113.9", 7_002)]);
    expect(ground).toMatchObject({ id: 1, introducer: at("203.0.113.9", 7_000), probeToken: "ab" });
    expect([ground.mapped, ground.behaviour, ground.roundTripMs]).toEqual([undefined, undefined, undefined]);
    expect([events, sent]).toEqual([[], []]);
  });

  test("takes what introductions find out, and the introducer's round trip, for those that follow", async () => {
    const { situation, ground } = await situationOf();
    expect(ground.clampsSegments).toBe(false);
    ground.handshakeStuck();
    situation.roundTripMs = 12;
    expect([ground.clampsSegments, ground.roundTripMs]).toEqual([true, 12]);
  });

  test("without probe ports can't be measured, and says so to who asks", async () => {
    const { situation } = await situationOf();
    situation.begin();
    await expect(situation.nat()).rejects.toThrow("no probe ports");
    await situation.measureAnew();
    await situation.close("done");
  });

  test("that is over tells nothing of a measurement that was under way", async () => {
    const { situation, sent, events } = await situationOf({ probePorts: [9] }, "127.0.0.1"); // nobody listens there
    situation.begin();
    await Promise.all([situation.close("done"), situation.measureAnew()]);
    expect(sent).toEqual([]);
    expect(events).toEqual([]);
  });
});

describe("what is asked of the introducer", () => {
  test("is answered in the order in which it was asked, also by a refusal", async () => {
    const sent: ToIntroducer[] = [];
    const questions = new Questions((one) => void sent.push(one));
    const asked = ["a", "b", "c"].map((text) => questions.echo(text));
    questions.answered({ type: "echo", text: "a" });
    questions.refused("echo", "too many");
    questions.answered({ type: "echo", text: "c" });
    expect(await Promise.allSettled(asked)).toMatchObject([
      { value: "a" },
      { reason: { message: "too many" } },
      { value: "c" },
    ]);
    expect(sent).toEqual(["a", "b", "c"].map((text) => ({ type: "echo", text })));
  });

  test("ends with the registration; what nobody asked for is nothing", async () => {
    const questions = new Questions(() => {});
    questions.answered({ type: "echo", text: "unasked" });
    questions.answered({ type: "filtering", filtering: "dropped" });
    const [echo, back] = [questions.echo("a"), questions.connectBack()];
    questions.close("it is gone");
    await expect(echo).rejects.toThrow("no answer: it is gone");
    expect(await back).toBeUndefined();
    const again = questions.connectBack();
    questions.answered({ type: "filtering", filtering: "let-in" });
    expect(await again).toMatchObject({ filtering: "let-in" });
  });
});
