import { describe, expect, setDefaultTimeout, test } from "bun:test";
import type { Grant, PortMapError } from "../../native/punch/gateway.ts";
import {
  decodeAnnouncement,
  decodeNatPmp,
  decodePcp,
  encodeNatPmpMap,
  encodePcpMap,
  hasLostState,
  natPmpAddressRequest,
  NatPmpClient,
  PcpClient,
  silentAfterMs,
} from "../../native/punch/pcp.ts";
import { noSocketLeft, until } from "../native-fixture.ts";
import { FakeGateway } from "./gateway-fixture.ts";
import { testMs } from "../patience-fixture.ts";

setDefaultTimeout(testMs);

const internalPort = 40_000;
const never = new AbortController().signal;

function bytes(hex: string): Uint8Array<ArrayBuffer> {
  return new Uint8Array(Buffer.from(hex.replaceAll(/\s/g, ""), "hex"));
}
const nonceText = "000102030405060708090a0b";

describe("PCP (RFC 6887)", () => {
  test("MAP request for TCP port 40000 from 192.168.1.2, any external port", () => {
    const request = encodePcpMap({
      lifetimeS: 7200,
      clientAddress: "192.168.1.2",
      nonce: bytes(nonceText),
      internalPort,
      externalPort: 0,
      externalAddress: "0.0.0.0",
    });
    expect(request).toEqual(
      bytes(`02 01 0000 00001c20  00000000 00000000 0000ffff c0a80102
             ${nonceText}  06 000000 9c40 0000  00000000 00000000 0000ffff 00000000`),
    );
  });

  test("a renewal suggests what it has, a deletion nothing", () => {
    const mapping = {
      clientAddress: "10.0.0.2",
      nonce: bytes(nonceText),
      internalPort,
      externalPort: 40_001,
      externalAddress: "203.0.113.7",
    };
    const tail = (lifetimeS: number) => encodePcpMap({ ...mapping, lifetimeS }).subarray(40);
    expect(tail(7200)).toEqual(bytes("9c40 9c41 00000000 00000000 0000ffff cb007107"));
    expect(tail(0)).toEqual(bytes("9c40 0000 00000000 00000000 0000ffff 00000000"));
  });

  const answer = `02 81 00 00 00001c20 0000012c 00000000 00000000 00000000
                  ${nonceText} 06 000000 9c40 9c41 00000000 00000000 0000ffff cb007107`;
  test("MAP answer", () => {
    expect(decodePcp(bytes(answer))).toEqual({
      is: "map",
      epochS: 300,
      nonce: bytes(nonceText),
      externalAddress: "203.0.113.7",
      lifetimeS: 7200,
      protocol: 6,
      internalPort,
      externalPort: 40_001,
    });
  });

  test("ANNOUNCE, refusals with and without the request's fields, a router of NAT-PMP", () => {
    const header = (start: string) => `${start} 00000000 00000005 00000000 00000000 00000000`;
    expect(decodePcp(bytes(header("02 80 00 00")))).toEqual({ is: "announce", epochS: 5 });
    expect(decodePcp(bytes(header("02 81 00 02")))).toEqual({ is: "refusal", result: "NOT_AUTHORIZED" });
    expect(decodePcp(bytes(header("02 81 00 63")))).toEqual({ is: "refusal", result: "result 99" });
    expect(decodePcp(bytes(answer.replace("02 81 00 00", "02 81 00 08")))).toEqual({
      is: "refusal",
      result: "NO_RESOURCES",
      nonce: bytes(nonceText),
    });
    expect(decodePcp(bytes("00 81 0001 00000005"))).toEqual({ is: "nat-pmp" });
  });

  test.each([
    ["nothing", ""],
    ["one byte", "02"],
    ["a request", answer.replace("02 81", "02 01")],
    ["another version", answer.replace("02 81", "03 81")],
    ["PEER, which we never ask", answer.replace("02 81", "02 82")],
    ["a MAP answer cut short", answer.slice(0, -8)],
    ["a length that is no multiple of 4", `${answer} 00`],
    ["more than 1100 bytes", `${answer} ${"00".repeat(1100)}`],
    ["an external address of IPv6", answer.replace("0000ffff cb007107", "00000000 cb007107")],
  ])("no answer: %s", (_, text) => {
    expect(decodePcp(bytes(text))).toBeUndefined();
  });
});

describe("NAT-PMP (RFC 6886)", () => {
  test("requests", () => {
    expect(natPmpAddressRequest).toEqual(bytes("00 00"));
    expect(encodeNatPmpMap(internalPort, 40_001, 7200)).toEqual(bytes("00 02 0000 9c40 9c41 00001c20"));
    expect(encodeNatPmpMap(internalPort, 40_001, 0)).toEqual(bytes("00 02 0000 9c40 0000 00000000"));
  });

  test("answers", () => {
    expect(decodeNatPmp(bytes("00 80 0000 0000012c cb007107"))).toEqual({
      is: "address",
      epochS: 300,
      address: "203.0.113.7",
    });
    expect(decodeNatPmp(bytes("00 82 0000 0000012c 9c40 9c41 00001c20"))).toEqual({
      is: "map",
      epochS: 300,
      internalPort,
      externalPort: 40_001,
      lifetimeS: 7200,
    });
    expect(decodeNatPmp(bytes("00 82 0003 0000012c"))).toEqual({
      is: "refusal",
      result: "network failure",
      code: 3,
    });
  });

  test.each([
    ["nothing", ""],
    ["too short", "00 80 0000 000001"],
    ["a request", "00 02 0000 9c40 0000 00001c20"],
    ["another version", "02 82 0000 0000012c 9c40 9c41 00001c20"],
    ["an answer for UDP", "00 81 0000 0000012c 9c40 9c41 00001c20"],
    ["an address cut short", "00 80 0000 0000012c cb0071"],
    ["a mapping cut short", "00 82 0000 0000012c 9c40 9c41 00001c"],
    ["a mapping that is too long", "00 82 0000 0000012c 9c40 9c41 00001c20 00"],
  ])("no answer: %s", (_, text) => {
    expect(decodeNatPmp(bytes(text))).toBeUndefined();
  });
});

test("announcements of both protocols tell the router's clock, and nothing else does", () => {
  expect(decodeAnnouncement(bytes("00 80 0000 0000002a cb007107"))).toBe(42);
  expect(decodeAnnouncement(bytes(`02 80 00 00 00000000 0000002a ${"00".repeat(12)}`))).toBe(42);
  expect(decodeAnnouncement(bytes("00 82 0000 0000012c 9c40 9c41 00001c20"))).toBeUndefined();
  expect(decodeAnnouncement(bytes(""))).toBeUndefined();
});

test.each([
  ["its clock runs like ours", 1000, 100_000, 1100, false],
  ["a second back is rounding", 1000, 0, 999, false],
  ["two seconds back", 1000, 0, 998, true],
  ["it started anew", 1000, 100_000, 3, true],
  ["it started anew long ago: its clock is ahead, but not by enough", 100, 3_600_000, 1_800, true],
  ["a sixteenth slower is drift", 0, 1_600_000, 1_500, false],
  ["a sixteenth faster is drift", 0, 1_500_000, 1_600, false],
  ["much faster", 0, 1_000_000, 1_600, true],
])("the router's clock: %s", (_, before, elapsedMs, now, isLost) => {
  const start = { epochS: before, atMs: 5_000 };
  expect(hasLostState(start, { epochS: now, atMs: 5_000 + elapsedMs })).toBe(isLost);
});

// --- with a router on loopback ---------------------------------------------------------------------------

/** The answer that a router gives to that request. */
function grantPcp(request: Uint8Array, changes: (answer: Uint8Array) => void = () => {}): Uint8Array {
  const answer = new Uint8Array(request);
  answer[1]! |= 0x80;
  answer.set([0, 0, 1, 44, ...new Uint8Array(12)], 8); // epoch 300, reserved
  answer.set([0x9c, 0x41], 42);
  answer.set([203, 0, 113, 7], 56);
  changes(answer);
  return answer;
}
const pcpGrant: Grant = {
  externalAddress: "203.0.113.7",
  externalPort: 40_001,
  lifetimeS: 7200,
  epochS: 300,
};
const natPmpAddress = bytes("00 80 0000 0000012c cb007107");
const natPmpGrant = bytes("00 82 0000 0000012c 9c40 9c41 00001c20");

async function reasonOf(asking: Promise<unknown>): Promise<string> {
  return asking.then(
    () => "granted",
    (error: PortMapError) => error.message,
  );
}

test("PCP: lies before the truth are not believed", async () => {
  await using _ = noSocketLeft();
  const lies = (request: Uint8Array) => {
    const lie = (at: number, ...wrong: number[]) =>
      grantPcp(request, (answer) => {
        answer.set([6, 6, 6, 6], 56);
        answer.set(wrong, at);
      });
    const ofAnotherNonce = lie(24, 9, 9, 9);
    return [
      ofAnotherNonce,
      new Uint8Array(ofAnotherNonce).fill(2, 3, 4), // a refusal
      lie(36, 17), // for UDP
      lie(40, 1, 2), // of another port
      lie(44, 1), // of an address of IPv6
      lie(56).subarray(0, 59),
      new Uint8Array(0),
      new Uint8Array(60_000).fill(2),
      request,
    ];
  };
  using router = await FakeGateway.open({ mapping: (request) => [...lies(request), grantPcp(request)] });
  expect(await new PcpClient(router.gateway, internalPort).map(7200, never)).toEqual(pcpGrant);
});

test("PCP: somebody else who answers first is not heard", async () => {
  await using _ = noSocketLeft();
  using router = await FakeGateway.open({ mapping: () => [] });
  const asking = new PcpClient(router.gateway, internalPort).map(7200, never);
  await until("asked", () => router.datagrams.length > 0);
  const request = router.datagrams[0]!;
  const liar = await Bun.udpSocket({ hostname: "127.0.0.2", socket: { error: () => {} } });
  const lie = grantPcp(request, (answer) => answer.set([6, 6, 6, 6], 56));
  liar.send(lie, router.client.port, router.client.address); // refused by the kernel: nobody is there for it
  router.say(grantPcp(request));
  expect(await asking).toEqual(pcpGrant);
  liar.close();
});

test("PCP: asked four times with one nonce, and what comes later than that still counts", async () => {
  await using _ = noSocketLeft();
  using router = await FakeGateway.open({ mapping: () => [] });
  const askedAt = performance.now();
  const asking = new PcpClient(router.gateway, internalPort).map(7200, never);
  await until("asked four times", () => router.datagrams.length === 4);
  await until("silent", () => performance.now() > askedAt + silentAfterMs + 100);
  expect(new Set(router.datagrams.map((one) => Buffer.from(one).toString("hex"))).size).toBe(1);
  expect(router.datagrams).toHaveLength(4);
  router.say(grantPcp(router.datagrams[0]!));
  expect(await asking).toEqual(pcpGrant);
});

test.each([
  ["nothing listens there", undefined, "nothing listens there"],
  ["a refusal", (request: Uint8Array) => grantPcp(request, (one) => one.fill(2, 3, 4)), "NOT_AUTHORIZED"],
  ["it speaks NAT-PMP", () => bytes("00 81 0001 00000005"), "the router speaks NAT-PMP only"],
  ["port 0", (request: Uint8Array) => grantPcp(request, (one) => one.fill(0, 42, 44)), "it grants nothing"],
  [
    "no lifetime",
    (request: Uint8Array) => grantPcp(request, (one) => one.fill(0, 4, 8)),
    "it grants nothing",
  ],
])("PCP, no mapping: %s", async (_, answer, reason) => {
  await using __ = noSocketLeft();
  using router = await FakeGateway.open(answer ? { mapping: (request) => [answer(request)] } : {});
  expect(await reasonOf(new PcpClient(router.gateway, internalPort).map(7200, never))).toBe(reason);
});

test("PCP: a renewal has the nonce and asks for what it has; so does the deletion, but for lifetime 0", async () => {
  await using _ = noSocketLeft();
  using router = await FakeGateway.open({ mapping: (request) => [grantPcp(request)] });
  const client = new PcpClient(router.gateway, internalPort);
  await client.map(7200, never);
  await client.map(7200, never);
  await client.unmap(never);
  await client.unmap(never); // there is nothing left to delete
  const [first, renewal, deletion, ...more] = router.datagrams.map((one) => Buffer.from(one));
  expect(more).toEqual([]);
  expect(renewal!.subarray(24, 36)).toEqual(first!.subarray(24, 36));
  expect(renewal!.subarray(42).toString("hex")).toBe("9c4100000000000000000000ffffcb007107");
  expect(deletion!.subarray(24, 36)).toEqual(first!.subarray(24, 36));
  expect([deletion!.readUInt32BE(4), deletion!.readUInt16BE(42)]).toEqual([0, 0]);
});

test("PCP: what was never answered is deleted without waiting", async () => {
  await using _ = noSocketLeft();
  using router = await FakeGateway.open({ mapping: () => [] });
  const client = new PcpClient(router.gateway, internalPort);
  const stop = new AbortController();
  const asking = reasonOf(client.map(7200, stop.signal));
  await until("asked", () => router.datagrams.length > 0);
  stop.abort();
  expect(await asking).toBe("no answer");
  await client.unmap(never);
  await until("deleted", () => router.datagrams.some((one) => Buffer.from(one).readUInt32BE(4) === 0));
});

test("NAT-PMP: address and mapping in either order, lies in between", async () => {
  await using _ = noSocketLeft();
  const lies = [
    bytes("00 82 0000 0000012c 0102 0606 00001c20"), // of another port
    natPmpGrant.subarray(0, 15),
    bytes("02 82 0000 0000012c 9c40 0606 00001c20"),
  ];
  for (const truth of [
    [natPmpAddress, natPmpGrant],
    [natPmpGrant, natPmpAddress],
  ]) {
    using router = await FakeGateway.open({
      mapping: (request) => (request.length === 2 ? [...lies, ...truth] : []),
    });
    expect(await new NatPmpClient(router.gateway, internalPort).map(7200, never)).toEqual(pcpGrant);
  }
});

test.each([
  ["a refusal", "00 82 0002 0000012c", "not authorized"],
  ["no address (network failure)", "00 80 0003 0000012c", "the router has no public address"],
])("NAT-PMP, no mapping: %s", async (_, answer, reason) => {
  await using __ = noSocketLeft();
  using router = await FakeGateway.open({ mapping: () => [bytes(answer)] });
  expect(await reasonOf(new NatPmpClient(router.gateway, internalPort).map(7200, never))).toBe(reason);
});

test("NAT-PMP: deleted by lifetime 0 and external port 0", async () => {
  await using _ = noSocketLeft();
  using router = await FakeGateway.open({
    mapping: (request) => [request.length === 2 ? natPmpAddress : natPmpGrant],
  });
  const client = new NatPmpClient(router.gateway, internalPort);
  await client.map(7200, never);
  await client.unmap(never);
  expect(router.datagrams.map((one) => Buffer.from(one).toString("hex"))).toEqual([
    "0000",
    "000200009c40000000001c20",
    "000200009c40000000000000",
  ]);
});
