/** What the NAT as a program makes of packets, a behaviour a test, in the words of RFC 4787, 5382 and 5508. */
import { describe, expect, setDefaultTimeout, test } from "bun:test";
import type { Endpoint } from "../../protocol.ts";
import type { NatBehaviour } from "./nat-behaviour.ts";
import { Translator, unsolicitedDelayMs, type Emitted, type Side } from "./nat.ts";
import { flags, Packet, unreachable } from "./packet.ts";
import { describePacket } from "./packet-text.ts";
import { testMs } from "../patience-fixture.ts";

setDefaultTimeout(testMs);

const alice = "192.168.1.2:40000";
const bob = "192.168.1.3:40000";
const server = "203.0.113.9:7000";
const otherPort = "203.0.113.9:7001";
const stranger = "203.0.113.10:7000";
const own = "203.0.113.1";
const letters: [string, number][] = [
  ["F", flags.fin],
  ["S", flags.syn],
  ["R", flags.reset],
  ["P", flags.push],
  ["A", flags.acknowledge],
];

/** Such as `tcp(alice, server, "SA", 17, 5)`: sequence and acknowledgement number. */
function tcp(source: string, destination: string, word = "S", sequence = 1, acknowledgement = 0): Packet {
  const bits = letters.reduce((all, [letter, bit]) => (word.includes(letter) ? all | bit : all), 0);
  return Packet.tcp({
    source: source as Endpoint,
    destination: destination as Endpoint,
    flags: bits,
    sequence,
    acknowledgement,
  });
}

/** The same with options, padded to 4 bytes, and a payload. */
function tcpWith(packet: Packet, options: number[], payload = ""): Packet {
  const padding = Array<number>((4 - (options.length % 4)) % 4).fill(1);
  const bytes = Buffer.concat([packet.bytes, Buffer.from([...options, ...padding]), Buffer.from(payload)]);
  bytes.writeUInt16BE(bytes.length, 2);
  bytes.writeUInt8((5 + Math.ceil(options.length / 4)) << 4, 20 + 12);
  const made = Packet.read(bytes)!;
  made.complete();
  return made;
}

function udp(source: string, destination: string): Packet {
  const bytes = Buffer.from("4500001c0000400040110000000000000000000000000000000800010000", "hex").subarray(
    0,
    28,
  );
  bytes.writeUInt16BE(8, 24);
  bytes.writeUInt16BE(1, 26); // a checksum is in use
  const packet = Packet.read(bytes)!;
  packet.source = source as Endpoint;
  packet.destination = destination as Endpoint;
  packet.complete();
  return packet;
}

/** Whether its checksums are what computing them anew gives. */
function isSound({ bytes }: Packet): boolean {
  const again = Packet.read(Buffer.from(bytes))!;
  again.complete();
  const about = again.about;
  const before = about && Buffer.from(about.bytes);
  if (about && about.bytes.length === about.bytes.readUInt16BE(2)) about.complete();
  return again.bytes.equals(bytes) && (before === undefined || before.equals(about!.bytes));
}

/** A NAT with one external address, or those given, and a clock that is set by hand. */
class Box {
  nowMs = 0;
  readonly translator: Translator;
  #seed = 20_000;

  constructor(behaviour: Partial<NatBehaviour> = {}, addresses: string[] = [own]) {
    // Any numbers will do, as long as they are the same in each run.
    const random = () => (this.#seed = (this.#seed * 48_271) % 2_147_483_647) / 2_147_483_647;
    this.translator = new Translator(addresses, behaviour, random);
  }

  receive(from: Side, packet: Packet): Emitted[] {
    const emitted = this.translator.receive(from, Buffer.from(packet.bytes), this.nowMs);
    for (const one of emitted) expect(isSound(one.packet)).toBeTrue();
    return emitted;
  }

  /** What comes out, as text. */
  says(from: Side, packet: Packet): string[] {
    return this.receive(from, packet).map(text);
  }

  /** The external endpoint that a SYN from `source` gets. */
  maps(source: string, destination: string): string {
    const [one] = this.receive("lan", tcp(source, destination));
    return one ? one.packet.source : "nothing";
  }

  port(source: string, destination: string): number {
    return Number(this.maps(source, destination).split(":")[1]);
  }

  /** Whether a SYN from `source` comes in, and to whom. */
  lets(source: string, destination: string): string {
    const [one] = this.receive("wan", tcp(source, destination));
    return one?.to === "lan" ? one.packet.destination : "dropped";
  }

  establish(source: string, destination: string): string {
    const external = this.maps(source, destination);
    this.receive("wan", tcp(destination, external, "SA"));
    this.receive("lan", tcp(source, destination, "A"));
    return external;
  }
}

function text({ to, packet }: Emitted): string {
  return `to ${to}: ${describePacket(packet.bytes)}`;
}

describe("mapping (RFC 4787 §4.1)", () => {
  const dependences = [
    ["endpoint-independent", 1, 1],
    ["address-dependent", 1, 2],
    ["address-and-port-dependent", 2, 3],
  ] as const;

  test.each(dependences)("%s", (mapping, towardsPorts, towardsAddresses) => {
    const box = new Box({ mapping, allocation: "random" });
    const seen = new Set([box.maps(alice, server), box.maps(alice, otherPort)]);
    expect(seen.size).toBe(towardsPorts);
    expect(seen.add(box.maps(alice, stranger)).size).toBe(towardsAddresses);
    expect(box.maps(alice, server)).toBeOneOf([...seen]); // a second SYN of the session changes nothing
  });

  test("two internal endpoints never share an external one", () => {
    const box = new Box({ allocation: { step: 1 } });
    expect(box.maps(alice, server)).not.toBe(box.maps(bob, server));
  });
});

describe("filtering (RFC 4787 §5)", () => {
  const dependences = [
    ["endpoint-independent", alice, alice],
    ["address-dependent", alice, "dropped"],
    ["address-and-port-dependent", "dropped", "dropped"],
  ] as const;

  test.each(dependences)("%s", (filtering, fromOtherPort, fromStranger) => {
    const box = new Box({ filtering });
    expect(box.lets(server, `${own}:40000`)).toBe("dropped"); // no mapping yet
    const external = box.maps(alice, server);
    expect([server, otherPort, stranger].map((one) => box.lets(one, external))).toEqual([
      alice,
      fromOtherPort,
      fromStranger,
    ]);
  });

  test("whom the filter has let in is answered by the endpoint that it came to", () => {
    const box = new Box({
      mapping: "address-and-port-dependent",
      filtering: "endpoint-independent",
      allocation: { step: 1 },
    });
    const external = box.maps(alice, server);
    expect(box.lets(stranger, external)).toBe(alice);
    expect(box.says("lan", tcp(alice, stranger, "SA"))).toEqual([
      `to wan: ${external} > ${stranger} SA seq 1`,
    ]);
  });

  test.each(["address-and-port-dependent", "endpoint-independent"] as const)(
    "%s: who is called by one mapping does not come in by another",
    (filtering) => {
      const box = new Box({ mapping: "address-and-port-dependent", filtering, allocation: { step: 1 } });
      const external = box.maps(alice, server);
      box.maps(alice, stranger);
      expect(box.lets(stranger, external)).toBe("dropped");
    },
  );

  test("what belongs to no session leaves and enters only as a first SYN", () => {
    const box = new Box({ filtering: "endpoint-independent" });
    expect(box.says("lan", tcp(alice, server, "A"))).toEqual([]);
    const external = box.maps(alice, server);
    expect(box.says("wan", tcp(stranger, external, "SA"))).toEqual([]);
  });
});

describe("port allocation (RFC 4787 §4.2)", () => {
  const dependent = { mapping: "address-and-port-dependent" } as const;

  test("preservation: the internal port, and another where it is taken", () => {
    const box = new Box({ allocation: "preservation" });
    expect(box.port(alice, server)).toBe(40_000);
    expect(box.port(bob, server)).not.toBe(40_000);
  });

  test("preservation with a dependent mapping: only the first destination sees the internal port", () => {
    const box = new Box({ ...dependent, allocation: "preservation" });
    expect(box.port(alice, server)).toBe(40_000);
    expect(box.port(alice, otherPort)).not.toBe(40_000);
  });

  test("overloading: the internal port for all, unless two use it towards one remote endpoint", () => {
    const box = new Box({ ...dependent, allocation: "overloading" });
    expect([box.port(alice, server), box.port(alice, otherPort), box.port(bob, stranger)]).toEqual(
      Array(3).fill(40_000),
    );
    expect(box.port(bob, server)).not.toBe(40_000);
    expect([box.lets(server, `${own}:40000`), box.lets(stranger, `${own}:40000`)]).toEqual([alice, bob]);
  });

  test.each([1, 7, 256, -1])("sequential with a step of %d", (step) => {
    const box = new Box({ ...dependent, allocation: { step } });
    const ports = [7000, 7001, 7002, 7003].map((port) => box.port(alice, `203.0.113.9:${port}`));
    expect(ports.slice(1).map((port, index) => port - ports[index]!)).toEqual([step, step, step]);
  });

  test("random: all over the range", () => {
    const box = new Box({ ...dependent, allocation: "random" });
    const ports = Array.from({ length: 200 }, (_, index) => box.port(alice, `203.0.113.9:${index + 1}`));
    expect(new Set(ports).size).toBe(200);
    expect(Math.max(...ports) - Math.min(...ports)).toBeGreaterThan(50_000);
    expect(Math.min(...ports)).toBeGreaterThanOrEqual(1024);
  });

  test("parity: even stays even, odd stays odd", () => {
    const box = new Box({ ...dependent, allocation: "parity" });
    for (let port = 40_000; port < 40_050; port++) {
      expect(box.port(`192.168.1.2:${port}`, server) % 2).toBe(port % 2);
    }
  });

  test("contiguity: neighbours stay neighbours, and no port is the internal one", () => {
    const box = new Box({ allocation: "contiguity" });
    const ports = [40_000, 40_001, 40_002].map((port) => box.port(`192.168.1.2:${port}`, server));
    expect(ports).toEqual([50_000, 50_001, 50_002]);
  });

  test("block: each internal host has its own ports, and no more", () => {
    const box = new Box({ ...dependent, allocation: { block: 4 } });
    const ports = (host: string) =>
      Array.from({ length: 5 }, (_, index) => box.maps(host, `203.0.113.9:${index + 1}`)).sort();
    const block = (first: number) => [0, 1, 2, 3].map((index) => `${own}:${first + index}`);
    expect(ports(alice)).toEqual([...block(1024), "nothing"]);
    expect(ports(bob)).toEqual([...block(1028), "nothing"]);
  });
});

describe("several external addresses (RFC 4787 REQ-2)", () => {
  const addresses = [own, "203.0.113.2"];
  const mapping = "address-and-port-dependent";
  const address = (endpoint: string) => endpoint.split(":")[0];

  test("paired: a host keeps the one it got first", () => {
    const box = new Box({ mapping, pooling: "paired" }, addresses);
    expect([server, otherPort, stranger].map((to) => address(box.maps(alice, to)))).toEqual([own, own, own]);
    expect(address(box.maps(bob, server))).toBe("203.0.113.2");
  });

  test("arbitrary: each mapping takes the next", () => {
    const box = new Box({ mapping, pooling: "arbitrary" }, addresses);
    const seen = [server, otherPort, stranger].map((to) => address(box.maps(alice, to)));
    expect(seen).toEqual([own, "203.0.113.2", own]);
  });
});

describe("hairpinning (RFC 4787 REQ-9, RFC 5382 REQ-8)", () => {
  test("with the external source endpoint", () => {
    const box = new Box({ hairpinning: true });
    const ofAlice = box.maps(alice, server);
    const ofBob = box.maps(bob, server);
    expect(box.says("lan", tcp(bob, ofAlice))).toEqual([]); // filtered like anyone's
    expect(box.says("lan", tcp(alice, ofBob))).toEqual([`to lan: ${ofAlice} > ${bob} S seq 1`]);
    expect(box.says("lan", tcp(bob, ofAlice))).toEqual([`to lan: ${ofBob} > ${alice} S seq 1`]);
  });

  test("a refusal by hairpin comes back to the internal host", () => {
    const box = new Box({ hairpinning: true, unsolicited: "reset" });
    expect(box.says("lan", tcp(alice, `${own}:9`))).toEqual([`to lan: ${own}:9 > ${alice} RA seq 0`]);
  });

  test("none: its own address is as closed to the inside as to the outside", () => {
    expect(new Box().says("lan", tcp(alice, `${own}:9`))).toEqual([]);
    const reset = new Box({ unsolicited: "reset" }).says("lan", tcp(alice, `${own}:9`));
    expect(reset).toEqual([`to lan: ${own}:9 > ${alice} RA seq 0`]);
  });
});

describe("an unsolicited SYN (RFC 5382 REQ-4)", () => {
  const syn = tcp(server, `${own}:40000`, "S", 17);

  test("drop: nothing", () => {
    expect(new Box().says("wan", syn)).toEqual([]);
  });

  test("reset: a RST that acknowledges it", () => {
    const [answer] = new Box({ unsolicited: "reset" }).receive("wan", syn);
    expect([text(answer!), answer!.packet.acknowledgement]).toEqual([
      `to wan: ${own}:40000 > ${server} RA seq 0`,
      18,
    ]);
  });

  test.each([
    ["icmp", unreachable.port],
    ["icmp-prohibited", unreachable.prohibited],
  ] as const)("%s: destination unreachable, about it", (unsolicited, code) => {
    expect(new Box({ unsolicited }).says("wan", syn)).toEqual([
      `to wan: ${own} > 203.0.113.9 ICMP 3/${code} about ${server} > ${own}:40000`,
    ]);
  });

  test("only a SYN is answered, and only at an address of the NAT", () => {
    const box = new Box({ unsolicited: "reset" });
    for (const word of ["A", "SA", "R", "FA"]) {
      expect(box.says("wan", tcp(server, `${own}:40000`, word))).toEqual([]);
    }
    expect(box.says("wan", tcp(server, "192.168.1.2:40000"))).toEqual([]);
  });

  test("late-icmp: nothing for 6 s, then one error for however many SYNs", () => {
    const box = new Box({ unsolicited: "late-icmp" });
    expect(box.says("wan", syn)).toEqual([]);
    box.nowMs = 1_000;
    expect(box.says("wan", syn)).toEqual([]);
    expect(box.translator.nextDueMs).toBe(unsolicitedDelayMs);
    expect(box.translator.due(unsolicitedDelayMs - 1)).toEqual([]);
    expect(box.translator.due(unsolicitedDelayMs).map(text)).toEqual([
      `to wan: ${own} > 203.0.113.9 ICMP 3/3 about ${server} > ${own}:40000`,
    ]);
    expect([box.translator.nextDueMs, box.translator.due(60_000)]).toEqual([Infinity, []]);
  });

  test("late-icmp: none where our own SYN has crossed it meanwhile", () => {
    const box = new Box({ unsolicited: "late-icmp" });
    box.receive("wan", syn);
    box.maps(alice, server);
    expect(box.translator.due(60_000)).toEqual([]);
  });
});

describe("how long a mapping lives (RFC 5382 §5)", () => {
  const timeouts = { establishedTimeoutMs: 1_000, transitoryTimeoutMs: 100 };

  /** Whether the session that `begin` made still lets in what the server sends, so much later. */
  function lives(begin: (box: Box) => string, afterMs: number): boolean {
    const box = new Box(timeouts);
    const external = begin(box);
    box.nowMs = afterMs;
    return box.receive("wan", tcp(server, external, "A")).length > 0;
  }

  const begins: [what: string, begin: (box: Box) => string, timeoutMs: number][] = [
    ["one SYN: the transitory timeout", (box) => box.maps(alice, server), 100],
    ["a SYN each: the established timeout", (box) => box.establish(alice, server), 1_000],
    [
      "a simultaneous open: the established timeout",
      (box) => {
        const external = box.maps(alice, server);
        expect(box.lets(server, external)).toBe(alice);
        return external;
      },
      1_000,
    ],
    [
      "a FIN each: the transitory timeout again",
      (box) => {
        const external = box.establish(alice, server);
        box.receive("lan", tcp(alice, server, "FA"));
        box.receive("wan", tcp(server, external, "FA"));
        return external;
      },
      100,
    ],
  ];
  test.each(begins)("%s", (_, begin, timeoutMs) => {
    expect([lives(begin, timeoutMs - 1), lives(begin, timeoutMs)]).toEqual([true, false]);
  });

  test.each(["lan", "wan"] as const)("a RST from the %s deletes it", (from) => {
    const box = new Box({ allocation: { step: 1 } });
    const external = box.establish(alice, server);
    const reset = from === "lan" ? tcp(alice, server, "R") : tcp(server, external, "R");
    expect(box.receive(from, reset)).toHaveLength(1);
    expect(box.says("wan", tcp(server, external, "A"))).toEqual([]);
    expect(box.maps(alice, server)).not.toBe(external);
  });

  test("a RST deletes no mapping where the NAT doesn't care: it stays for the transitory timeout", () => {
    const box = new Box({ ...timeouts, allocation: { step: 1 }, resetDeletes: false });
    const external = box.establish(alice, server);
    box.receive("wan", tcp(server, external, "R"));
    expect(box.maps(alice, server)).toBe(external);
    box.receive("wan", tcp(server, external, "R"));
    box.nowMs = 100;
    expect(box.says("wan", tcp(server, external, "A"))).toEqual([]);
  });

  test("a mapping outlives a session as long as it has another", () => {
    const box = new Box({ allocation: { step: 1 } });
    const external = box.establish(alice, server);
    box.maps(alice, stranger);
    box.receive("wan", tcp(server, external, "R"));
    expect(box.maps(alice, otherPort)).toBe(external);
  });

  test("what is forgotten is gone for both directions", () => {
    const box = new Box();
    const external = box.establish(alice, server);
    box.translator.forget();
    expect(box.says("wan", tcp(server, external, "A"))).toEqual([]);
    expect(box.says("lan", tcp(alice, server, "A"))).toEqual([]);
  });
});

describe("ICMP errors (RFC 5508)", () => {
  test("the packet inside is translated, and the session stays (RFC 5382 REQ-10)", () => {
    const box = new Box({ allocation: "contiguity" });
    const [syn] = box.receive("lan", tcp(alice, server));
    const error = Packet.unreachable(syn!.packet, unreachable.port);
    const wanted = [`to lan: 203.0.113.9 > 192.168.1.2 ICMP 3/3 about ${alice} > ${server}`];
    expect([box.says("wan", error), box.says("wan", error)]).toEqual([wanted, wanted]);
  });

  test("from the inside too", () => {
    const box = new Box({ allocation: "contiguity", filtering: "endpoint-independent" });
    const external = box.maps(alice, server);
    const [syn] = box.receive("wan", tcp(stranger, external));
    expect(box.says("lan", Packet.unreachable(syn!.packet, unreachable.port))).toEqual([
      `to wan: ${own} > 203.0.113.10 ICMP 3/3 about ${stranger} > ${external}`,
    ]);
  });

  test("about what has no session: dropped", () => {
    const error = Packet.unreachable(tcp(`${own}:40000`, server), unreachable.port);
    expect(new Box().says("wan", error)).toEqual([]);
  });
});

describe("a SYN that crosses ours (RFC 5382 REQ-2)", () => {
  test.each([
    ["passes", [`to lan: ${server} > ${alice} S seq 17`]],
    ["drop", []],
    ["reset", [`to wan: ${own}:40000 > ${server} RA seq 0`]],
  ] as const)("%s, and our session goes on", (simultaneousOpen, answer) => {
    const box = new Box({ simultaneousOpen });
    const external = box.maps(alice, server);
    expect(box.says("wan", tcp(server, external, "S", 17))).toEqual([...answer]);
    expect(box.says("wan", tcp(server, external, "SA", 17))).toHaveLength(1);
  });
});

test("an internal host has so many sessions, another one its own, and what ends makes room", () => {
  const box = new Box({ maxSessions: 2 });
  const [first] = [server, otherPort].map((remote) => box.maps(alice, remote));
  expect([box.maps(alice, stranger), box.maps(alice, server)]).toEqual(["nothing", first!]);
  expect(box.maps(bob, stranger)).not.toBe("nothing");
  box.receive("lan", tcp(alice, server, "R"));
  expect(box.maps(alice, stranger)).not.toBe("nothing");
});

test("packets beyond the largest get lost, each way and without a word", () => {
  const largestPacket = 140;
  const box = new Box({ largestPacket });
  const external = box.establish(alice, server);
  const long = (source: string, destination: string, bytes: number) =>
    tcpWith(tcp(source, destination, "PA"), [], "x".repeat(bytes - 40));
  const lost = [box.says("lan", long(alice, server, 141)), box.says("wan", long(server, external, 141))];
  expect(lost).toEqual([[], []]);
  expect(box.says("lan", long(alice, server, largestPacket))).toHaveLength(1);
  expect(box.says("wan", long(server, external, largestPacket))).toHaveLength(1);
});

describe("what middleboxes do to TCP", () => {
  const synOptions = [2, 4, 0x05, 0xb4, 4, 2, 8, 10, 1, 2, 3, 4, 0, 0, 0, 0, 1, 3, 3, 7];
  const kinds = ({ packet }: Emitted) => [...packet.options()].map(({ kind }) => kind);

  test("options come through", () => {
    const [one] = new Box().receive("lan", tcpWith(tcp(alice, server), synOptions));
    expect(kinds(one!)).toEqual([2, 4, 8, 3]);
  });

  test("options are stripped, each way", () => {
    const box = new Box({ stripped: ["timestamps", "sack", "window-scale"] });
    const [out] = box.receive("lan", tcpWith(tcp(alice, server), synOptions));
    const [back] = box.receive("wan", tcpWith(tcp(server, out!.packet.source, "SA"), synOptions));
    expect([kinds(out!), kinds(back!)]).toEqual([[2], [2]]);
    const [some] = new Box({ stripped: ["sack"] }).receive("lan", tcpWith(tcp(alice, server), synOptions));
    expect(kinds(some!)).toEqual([2, 8, 3]);
  });

  test("the largest segment size is clamped, never raised", () => {
    const size = (largestSegment: number) => {
      const [one] = new Box({ largestSegment }).receive("lan", tcpWith(tcp(alice, server), synOptions));
      const [first] = one!.packet.options();
      return one!.packet.bytes.readUInt16BE(first!.at);
    };
    expect([size(1200), size(9000)]).toEqual([1200, 1460]);
  });

  test("sequence numbers of the inside are rewritten, and what the outside says of them restored", () => {
    const box = new Box({ rewritesSequence: true });
    const [syn] = box.receive("lan", tcp(alice, server, "S", 1000));
    const { source: external, sequence } = syn!.packet;
    expect(sequence).not.toBe(1000);
    const next = (sequence + 1) >>> 0;
    const selective = Buffer.from([5, 10, 0, 0, 0, 0, 0, 0, 0, 0]);
    selective.writeUInt32BE((sequence + 11) >>> 0, 2);
    selective.writeUInt32BE((sequence + 21) >>> 0, 6);
    const [back] = box.receive("wan", tcpWith(tcp(server, external, "SA", 5, next), [...selective]));
    const [first] = back!.packet.options();
    const { at } = first!;
    const { bytes } = back!.packet;
    expect([back!.packet.sequence, back!.packet.acknowledgement]).toEqual([5, 1001]);
    expect([bytes.readUInt32BE(at), bytes.readUInt32BE(at + 4)]).toEqual([1011, 1021]);
    const [acknowledgement] = box.receive("lan", tcp(alice, server, "A", 1001, 6));
    expect([acknowledgement!.packet.sequence, acknowledgement!.packet.acknowledgement]).toEqual([next, 6]);
  });

  test("an ALG resets both ends of what is not HTTP, on its ports", () => {
    const box = new Box({ onlyHttp: { first: 80, last: 8080 } });
    const begin = (remote: string, payload: string) => {
      box.establish(alice, remote);
      return box.says("lan", tcpWith(tcp(alice, remote, "PA", 2, 9), [], payload));
    };
    expect(begin(server, "GET / HTTP/1.1\r\n")).toHaveLength(1);
    expect(begin("203.0.113.9:9000", "\x16\x03\x01")).toHaveLength(1);
    expect(begin(otherPort, "\x16\x03\x01")).toEqual([
      `to lan: ${otherPort} > ${alice} R seq 9`,
      `to wan: ${own}:40000 > ${otherPort} R seq 2`,
    ]);
    expect(box.says("wan", tcp(otherPort, `${own}:40000`, "A"))).toEqual([]);
  });
});

describe("packets", () => {
  test("UDP is translated like TCP, and filtered", () => {
    const box = new Box({ allocation: "contiguity" });
    expect(box.says("lan", udp(alice, server))).toEqual([`to wan: ${own}:50000 > ${server} UDP`]);
    expect(box.says("wan", udp(server, `${own}:50000`))).toEqual([`to lan: ${server} > ${alice} UDP`]);
    expect(box.says("wan", udp(stranger, `${own}:50000`))).toEqual([]);
  });

  test("checksums are what the textbook has, also after a change and back", () => {
    const header = "450000281c4640004006b1faac100a63ac100a0c";
    const packet = Packet.read(Buffer.from(header + "9c40005000000001000000005002ffff00000000", "hex"))!;
    packet.bytes.writeUInt16BE(0, 10);
    packet.complete();
    expect(packet.bytes.toString("hex", 0, 20)).toBe(header);
    const before = Buffer.from(packet.bytes);
    packet.source = "198.51.100.77:1" as Endpoint;
    expect(isSound(packet)).toBeTrue();
    packet.source = "172.16.10.99:40000" as Endpoint;
    expect(packet.bytes).toEqual(before);
  });

  test("a packet that came damaged leaves as damaged", () => {
    const damaged = Buffer.from(tcp(alice, server).bytes);
    damaged[36]! ^= 0xff; // within the TCP checksum
    const [one] = new Box().translator.receive("lan", damaged, 0);
    expect(isSound(one!.packet)).toBeFalse();
  });

  const junk: [what: string, hex: string][] = [
    ["nothing", ""],
    ["IPv6", "60000000000006400000000000000000000000000000000100000000000000000000000000000002"],
    ["a fragment", "4500002820004001400600000a0000010a000002" + "00".repeat(20)],
    ["a header longer than the packet", "4f000028000040004006000000000000000000000000000000000000"],
    ["a length that is not there", "450000ff0000400040060000c0a80102cb007109" + "00".repeat(20)],
    ["TCP with half a header", "4500001c0000400040060000c0a80102cb007109" + "00".repeat(8)],
    ["an ICMP error about nothing", "4500001c0000400040010000c0a80102cb007109" + "0303000000000000"],
    ["an echo request", "4500001c0000400040010000c0a80102cb007109" + "0800000000000000"],
  ];
  test.each(junk)("%s is dropped", (_, hex) => {
    for (const side of ["lan", "wan"] as const) {
      expect(new Box().translator.receive(side, Buffer.from(hex, "hex"), 0)).toEqual([]);
    }
  });
});
