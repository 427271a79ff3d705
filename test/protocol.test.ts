import { describe, expect, test } from "bun:test";
import {
  changedPeer,
  type Endpoint,
  type FailureReason,
  LineDecoder,
  type Peer,
  Refusal,
  type RefusalCode,
  type ToIntroducer,
  type ToParticipant,
  type ToPeer,
  type LinkLine,
  addressScope,
  canonicalAddress,
  encode,
  failureReasons,
  filterings,
  findByIdOrName,
  formatEndpoint,
  maxCandidates,
  maxLineBytes,
  maxNameLength,
  maxRoomLength,
  maxTextLength,
  mayOffer,
  nameProblem,
  isNumberedName,
  numberedName,
  parseEndpoint,
  parseToIntroducer,
  parseToParticipant,
  parseToPeer,
  parseLinkLine,
  printable,
  punchDeadlineMs,
  refusalCodes,
  splitEndpoint,
} from "../protocol.ts";

/** The endpoint of a literal that is already canonical. */
function at(text: string): Endpoint {
  const parsed = parseEndpoint(text);
  if (parsed === undefined || parsed !== text) throw new Error(`not canonical: ${text}`);
  return parsed;
}

function refusalOf(run: () => unknown): Refusal {
  try {
    run();
  } catch (error) {
    if (error instanceof Refusal) return error;
    throw error;
  }
  throw new Error("nothing was refused");
}

const utf8 = new TextEncoder();
const instance = "0011223344556677";
const token = "00112233445566778899aabbccddeeff";
const fingerprint = "ab".repeat(32);

// --- messages --------------------------------------------------------------------------------------------

/** One object and its line for every variant; a variant without a row is a type error. */
type Golden<Union extends { type: string }> = {
  [T in Union["type"]]: [message: Extract<Union, { type: T }>, line: string][];
};

const bob: Peer = {
  id: 2,
  name: "bob",
  instance,
  fingerprint,
  private: [at("10.0.0.5:40000"), at("[2001:db8::5]:40000")],
  public: at("203.0.113.7:40000"),
  mapping: "endpoint-independent",
  roundTripMs: 23,
  since: 1700000000000,
};
const bobJson =
  `{"id":2,"name":"bob","instance":"0011223344556677","fingerprint":"${fingerprint}",` +
  `"private":["10.0.0.5:40000","[2001:db8::5]:40000"],"public":"203.0.113.7:40000",` +
  `"mapping":"endpoint-independent","roundTripMs":23,"since":1700000000000}`;

const failed = {
  type: "failed",
  peer: 2,
  token,
  reason: "no-candidate-answered",
} as const;
const failedJson =
  `{"type":"failed","peer":2,"token":"00112233445566778899aabbccddeeff",` +
  `"reason":"no-candidate-answered"}`;

const onlyRound = { way: "direct", round: 1, last: true, deadlineMs: 10_000 } as const;

const goldenToIntroducer: Golden<ToIntroducer> = {
  register: [
    [
      {
        type: "register",
        version: 2,
        name: "alice",
        room: "lobby",
        instance,
        fingerprint,
        private: [at("10.0.0.4:40000")],
        links: [{ peer: "8899aabbccddeeff", route: "listen" }],
      },
      `{"type":"register","version":2,"name":"alice","room":"lobby","instance":"0011223344556677",` +
        `"fingerprint":"${fingerprint}","private":["10.0.0.4:40000"],` +
        `"links":[{"peer":"8899aabbccddeeff","route":"listen"}]}`,
    ],
  ],
  verify: [[{ type: "verify", token }, `{"type":"verify","token":"${token}"}`]],
  relay: [[{ type: "relay", token }, `{"type":"relay","token":"${token}"}`]],
  probe: [
    [{ type: "probe", token, peer: 2, step: -1 }, `{"type":"probe","token":"${token}","peer":2,"step":-1}`],
  ],
  connect: [
    [{ type: "connect", peer: 2 }, `{"type":"connect","peer":2}`],
    [{ type: "connect", peer: 2, relay: false }, `{"type":"connect","peer":2,"relay":false}`],
  ],
  linked: [
    [
      {
        type: "linked",
        peer: 2,
        token,
        route: "public",
        local: at("10.0.0.4:40000"),
        remote: at("203.0.113.7:40000"),
      },
      `{"type":"linked","peer":2,"token":"${token}","route":"public","local":"10.0.0.4:40000","remote":"203.0.113.7:40000"}`,
    ],
  ],
  unlinked: [
    [{ type: "unlinked", peer: 2, reason: "peer-quit" }, `{"type":"unlinked","peer":2,"reason":"peer-quit"}`],
  ],
  failed: [[failed, failedJson]],
  mapping: [
    [{ type: "mapping", mapping: "unknown" }, `{"type":"mapping","mapping":"unknown"}`],
    [
      { type: "mapping", mapping: "sequential", prediction: { endpoint: at("203.0.113.7:40000"), step: 2 } },
      `{"type":"mapping","mapping":"sequential","prediction":{"endpoint":"203.0.113.7:40000","step":2}}`,
    ],
  ],
  mapped: [
    [
      { type: "mapped", endpoint: at("203.0.113.7:40000") },
      `{"type":"mapped","endpoint":"203.0.113.7:40000"}`,
    ],
    [{ type: "mapped" }, `{"type":"mapped"}`],
  ],
  measured: [
    [
      { type: "measured", token, prediction: { endpoint: at("203.0.113.7:40000"), step: -256 } },
      `{"type":"measured","token":"${token}","prediction":{"endpoint":"203.0.113.7:40000","step":-256}}`,
    ],
    [{ type: "measured", token }, `{"type":"measured","token":"${token}"}`],
  ],
  "connect-back": [[{ type: "connect-back" }, `{"type":"connect-back"}`]],
  echo: [
    [{ type: "echo", text: "hello" }, `{"type":"echo","text":"hello"}`],
    [{ type: "echo", text: "" }, `{"type":"echo","text":""}`],
    [{ type: "echo", text: 'two\nlines, "ü", 😀' }, `{"type":"echo","text":"two\\nlines, \\"ü\\", 😀"}`],
  ],
  pong: [[{ type: "pong", id: 0 }, `{"type":"pong","id":0}`]],
};

const goldenToParticipant: Golden<ToParticipant> = {
  registered: [
    [
      {
        type: "registered",
        id: 1,
        name: "alice",
        room: "chess club",
        public: at("[2001:db8::7]:40000"),
        private: [],
        probePorts: [7001, 7002],
        alternates: [at("203.0.113.2:7001")],
      },
      `{"type":"registered","id":1,"name":"alice","room":"chess club","public":"[2001:db8::7]:40000","private":[],` +
        `"probePorts":[7001,7002],"alternates":["203.0.113.2:7001"]}`,
    ],
  ],
  peers: [
    [{ type: "peers", peers: [bob], more: true }, `{"type":"peers","peers":[${bobJson}],"more":true}`],
    [{ type: "peers", peers: [], more: false }, `{"type":"peers","peers":[],"more":false}`],
  ],
  joined: [[{ type: "joined", peer: bob }, `{"type":"joined","peer":${bobJson}}`]],
  updated: [
    [{ type: "updated", id: 2, roundTripMs: 23 }, `{"type":"updated","id":2,"roundTripMs":23}`],
    [
      { type: "updated", id: 2, otherPublic: at("[2001:db8::5]:40000"), mapping: "random" },
      `{"type":"updated","id":2,"otherPublic":"[2001:db8::5]:40000","mapping":"random"}`,
    ],
    [
      { type: "updated", id: 2, mapped: at("203.0.113.7:41000") },
      `{"type":"updated","id":2,"mapped":"203.0.113.7:41000"}`,
    ],
    [{ type: "updated", id: 2, mapped: null }, `{"type":"updated","id":2,"mapped":null}`],
  ],
  relay: [
    [
      { type: "relay", peer: bob, role: "controlled", token },
      `{"type":"relay","peer":${bobJson},"role":"controlled","token":"${token}"}`,
    ],
  ],
  relaying: [[{ type: "relaying" }, `{"type":"relaying"}`]],
  observed: [
    [
      { type: "observed", endpoint: at("203.0.113.7:40000") },
      `{"type":"observed","endpoint":"203.0.113.7:40000"}`,
    ],
  ],
  measure: [
    [
      { type: "measure", peer: bob, token, way: "fresh" },
      `{"type":"measure","peer":${bobJson},"token":"${token}","way":"fresh"}`,
    ],
  ],
  filtering: filterings.map((filtering) => [
    { type: "filtering", filtering },
    `{"type":"filtering","filtering":"${filtering}"}`,
  ]),
  left: [[{ type: "left", id: 2 }, `{"type":"left","id":2}`]],
  punch: [
    [
      {
        type: "punch",
        peer: bob,
        role: "controlling",
        token,
        startInMs: 60,
        way: "predicted",
        round: 2,
        last: false,
        deadlineMs: 900,
        own: { endpoint: at("203.0.113.9:40001"), step: 0 },
        theirs: { endpoint: at("203.0.113.7:40002"), step: 1 },
      },
      `{"type":"punch","peer":${bobJson},"role":"controlling","token":"00112233445566778899aabbccddeeff","startInMs":60,` +
        `"way":"predicted","round":2,"last":false,"deadlineMs":900,` +
        `"own":{"endpoint":"203.0.113.9:40001","step":0},"theirs":{"endpoint":"203.0.113.7:40002","step":1}}`,
    ],
    [
      { type: "punch", peer: bob, role: "controlled", token, startInMs: 0, ...onlyRound },
      `{"type":"punch","peer":${bobJson},"role":"controlled","token":"00112233445566778899aabbccddeeff","startInMs":0,` +
        `"way":"direct","round":1,"last":true,"deadlineMs":10000}`,
    ],
  ],
  failed: [[failed, failedJson]],
  notice: [[{ type: "notice", text: "restart at noon" }, `{"type":"notice","text":"restart at noon"}`]],
  echo: [[{ type: "echo", text: "hello" }, `{"type":"echo","text":"hello"}`]],
  ping: [[{ type: "ping", id: 7 }, `{"type":"ping","id":7}`]],
  refused: [
    [
      {
        type: "refused",
        code: "unknown-peer",
        message: "no participant 9 here",
        request: "connect",
        peer: 9,
      },
      `{"type":"refused","code":"unknown-peer","message":"no participant 9 here","request":"connect","peer":9}`,
    ],
    [
      { type: "refused", code: "bad-line", message: "a line must be one JSON object" },
      `{"type":"refused","code":"bad-line","message":"a line must be one JSON object"}`,
    ],
    [
      { type: "refused", code: "name-taken", message: "taken", name: "bob-2" },
      `{"type":"refused","code":"name-taken","message":"taken","name":"bob-2"}`,
    ],
  ],
  bye: [
    [{ type: "bye", reason: "shutting down" }, `{"type":"bye","reason":"shutting down"}`],
    [
      { type: "bye", reason: "shutting down", retryInMs: 1500 },
      `{"type":"bye","reason":"shutting down","retryInMs":1500}`,
    ],
  ],
};

const goldenToPeer: Golden<ToPeer> = {
  nominate: [
    [
      { type: "nominate", token, proof: "ab".repeat(32) },
      `{"type":"nominate","token":"00112233445566778899aabbccddeeff","proof":"${"ab".repeat(32)}"}`,
    ],
  ],
  nominated: [
    [{ type: "nominated", proof: "ab".repeat(32) }, `{"type":"nominated","proof":"${"ab".repeat(32)}"}`],
  ],
};

const goldenLinkLine: Golden<LinkLine> = {
  say: [[{ type: "say", id: 1, text: "hello" }, `{"type":"say","id":1,"text":"hello"}`]],
  heard: [[{ type: "heard", id: 1 }, `{"type":"heard","id":1}`]],
  ping: [[{ type: "ping", id: 2 }, `{"type":"ping","id":2}`]],
  pong: [[{ type: "pong", id: 2 }, `{"type":"pong","id":2}`]],
};

const directions: [
  title: string,
  golden: Record<string, [ToIntroducer | ToParticipant | ToPeer | LinkLine, string][]>,
  parse: (line: string) => unknown,
][] = [
  ["participant to introducer", goldenToIntroducer, parseToIntroducer],
  ["introducer to participant", goldenToParticipant, parseToParticipant],
  ["peer to peer", goldenToPeer, parseToPeer],
  ["on a link", goldenLinkLine, parseLinkLine],
];

/** Fields that a message may lack. */
const optionalFields: Record<string, string[]> = {
  refused: ["request", "peer", "name"],
  bye: ["retryInMs"],
  register: ["proof", "direct"],
  registered: ["verify", "relay", "probeToken"],
  connect: ["relay"],
  updated: ["otherPublic", "mapped", "mapping", "roundTripMs"],
  mapped: ["endpoint"],
  filtering: ["elsewhere"],
  mapping: ["prediction"],
  measured: ["prediction"],
  punch: ["own", "theirs"],
};

describe.each(directions)("%s", (_title, golden, parse) => {
  const rows = Object.entries(golden).flatMap(([type, pairs]) =>
    pairs.map(([message, line], index) => ({ name: `${type} ${index}`, message, line })),
  );

  test.each(rows)("$name is this line", ({ message, line }) => {
    expect(encode(message)).toBe(`${line}\n`);
    expect(parse(line)).toStrictEqual(message);
  });

  test.each(rows)("$name needs each of its fields", ({ message, line }) => {
    for (const key of Object.keys(message)) {
      if (key === "type" || optionalFields[message.type]?.includes(key)) continue;
      const without: Record<string, unknown> = JSON.parse(line);
      delete without[key];
      const refusal = refusalOf(() => parse(JSON.stringify(without)));
      expect([key, refusal.code, refusal.fatal]).toEqual([key, "bad-field", false]);
      expect(refusal.message).toStartWith(`${key} must be `);
    }
  });

  test.each(rows)("$name drops what it does not know", ({ message, line }) => {
    for (const extra of [`"colour":"red"`, `"__proto__":{"id":9}`, `"toString":1`, `"constructor":null`]) {
      const parsed = parse(`${line.slice(0, -1)},${extra}}`);
      expect(parsed).toStrictEqual(message);
      expect(Object.keys(parsed as object)).toEqual(Object.keys(message));
    }
  });

  test.each([
    ["nothing", "", "bad-line"],
    ["garbage", "hello", "bad-line"],
    ["cut short", `{"type":"bye"`, "bad-line"],
    ["two objects", `{"type":"bye"}{"type":"bye"}`, "bad-line"],
    ["array", `[{"type":"bye"}]`, "bad-line"],
    ["number", "7", "bad-line"],
    ["string", `"bye"`, "bad-line"],
    ["null", "null", "bad-line"],
    ["brackets nested deeper than any stack", "[".repeat(60_000), "bad-line"],
    ["no type", "{}", "unknown-type"],
    ["type null", `{"type":null}`, "unknown-type"],
    ["type a list of one", `{"type":["bye"]}`, "unknown-type"],
    ["type in capitals", `{"type":"BYE"}`, "unknown-type"],
    ["type unheard of", `{"type":"dance"}`, "unknown-type"],
    ["type __proto__", `{"type":"__proto__"}`, "unknown-type"],
    ["type constructor", `{"type":"constructor"}`, "unknown-type"],
    ["type toString", `{"type":"toString"}`, "unknown-type"],
    ["type only inherited", `{"__proto__":{"type":"bye","reason":""}}`, "unknown-type"],
  ] satisfies [string, string, RefusalCode][])("%s is refused", (_what, line, code) => {
    const refusal = refusalOf(() => parse(line));
    expect([refusal.code, refusal.fatal]).toEqual([code, false]);
    expect(refusal.message).toStartWith(
      code === "bad-line" ? "a line must be one JSON object" : "type must be one of ",
    );
  });
});

test("a message of the other direction is refused", () => {
  const rows: [what: string, run: () => unknown][] = [
    ["punch to the introducer", () => parseToIntroducer(`{"type":"punch"}`)],
    ["register to a participant", () => parseToParticipant(`{"type":"register"}`)],
    ["nominate to a participant", () => parseToParticipant(`{"type":"nominate"}`)],
    ["connect to a peer", () => parseToPeer(`{"type":"connect","peer":2}`)],
    ["a text before the nomination", () => parseToPeer(encode({ type: "say", id: 1, text: "hello" }))],
    ["a nomination on a link", () => parseLinkLine(`{"type":"nominate","token":"${token}"}`)],
    ["what was the end of a link once", () => parseLinkLine(`{"type":"bye","reason":"quit"}`)],
  ];
  for (const [what, run] of rows) expect([what, refusalOf(run).code]).toEqual([what, "unknown-type"]);
});

const register: Record<string, unknown> = goldenToIntroducer.register[0]![0];
const linked: Record<string, unknown> = goldenToIntroducer.linked[0]![0];
const punch: Record<string, unknown> = goldenToParticipant.punch[0]![0];
const tooMany = Array.from({ length: maxCandidates + 1 }, (_, index) => `10.0.0.${index}:1`);

const badFields: [what: string, parse: (line: string) => unknown, value: unknown, names: string][] = [
  ["version text", parseToIntroducer, { ...register, version: "1" }, "version"],
  ["version float", parseToIntroducer, { ...register, version: 1.5 }, "version"],
  ["version negative", parseToIntroducer, { ...register, version: -1 }, "version"],
  ["version null", parseToIntroducer, { ...register, version: null }, "version"],
  ["name number", parseToIntroducer, { ...register, name: 7 }, "name"],
  ["name empty", parseToIntroducer, { ...register, name: "" }, "name"],
  ["name too long", parseToIntroducer, { ...register, name: "a".repeat(maxNameLength + 1) }, "name"],
  ["name with blank", parseToIntroducer, { ...register, name: "al ice" }, "name"],
  ["name with escape sequence", parseToIntroducer, { ...register, name: "\x1b[2Jalice" }, "name"],
  ["name with lone surrogate", parseToIntroducer, { ...register, name: "a\ud800" }, "name"],
  ["name like an id", parseToIntroducer, { ...register, name: "42" }, "name"],
  ["room empty", parseToIntroducer, { ...register, room: "" }, "room"],
  ["room too long", parseToIntroducer, { ...register, room: "r".repeat(maxRoomLength + 1) }, "room"],
  ["room with line feed", parseToIntroducer, { ...register, room: "a\nb" }, "room"],
  ["room with C1 control", parseToIntroducer, { ...register, room: "a\x9b2J" }, "room"],
  ["room with bidi override", parseToIntroducer, { ...register, room: "a\u202eb" }, "room"],
  ["room with lone surrogate", parseToIntroducer, { ...register, room: "\udc00" }, "room"],
  ["instance too short", parseToIntroducer, { ...register, instance: instance.slice(1) }, "instance"],
  ["instance not hex", parseToIntroducer, { ...register, instance: "g".repeat(16) }, "instance"],
  ["instance and a line feed", parseToIntroducer, { ...register, instance: `${instance}\n` }, "instance"],
  [
    "fingerprint in capitals",
    parseToIntroducer,
    { ...register, fingerprint: "AB".repeat(32) },
    "fingerprint",
  ],
  ["fingerprint too long", parseToIntroducer, { ...register, fingerprint: `${fingerprint}0` }, "fingerprint"],
  ["fingerprint in a list", parseToIntroducer, { ...register, fingerprint: [fingerprint] }, "fingerprint"],
  ["candidates an object", parseToIntroducer, { ...register, private: { length: 0 } }, "private"],
  ["candidates text", parseToIntroducer, { ...register, private: "10.0.0.1:1" }, "private"],
  ["too many candidates", parseToIntroducer, { ...register, private: tooMany }, "private"],
  ["candidate null", parseToIntroducer, { ...register, private: [null] }, "private[0]"],
  ["candidate host name", parseToIntroducer, { ...register, private: ["10.0.0.1:1", "a.b:1"] }, "private[1]"],
  ["candidate port 0", parseToIntroducer, { ...register, private: ["10.0.0.1:0"] }, "private[0]"],
  ["candidate multicast", parseToIntroducer, { ...register, private: ["224.0.0.1:80"] }, "private[0]"],
  ["candidate broadcast", parseToIntroducer, { ...register, private: ["255.255.255.255:80"] }, "private[0]"],
  ["candidate unspecified", parseToIntroducer, { ...register, private: ["[::]:80"] }, "private[0]"],
  [
    "candidate mapped unspecified",
    parseToIntroducer,
    { ...register, private: ["[::ffff:0.0.0.0]:80"] },
    "private[0]",
  ],
  ["candidate link-local", parseToIntroducer, { ...register, private: ["[fe80::1]:80"] }, "private[0]"],
  ["candidate very long", parseToIntroducer, { ...register, private: ["1".repeat(60_000)] }, "private[0]"],
  ["peer 0", parseToIntroducer, { type: "connect", peer: 0 }, "peer"],
  ["peer negative", parseToIntroducer, { type: "connect", peer: -2 }, "peer"],
  ["peer float", parseToIntroducer, { type: "connect", peer: 2.5 }, "peer"],
  ["peer beyond exact numbers", parseToIntroducer, { type: "connect", peer: 2 ** 53 }, "peer"],
  ["peer text", parseToIntroducer, { type: "connect", peer: "2" }, "peer"],
  ["peer in a list", parseToIntroducer, { type: "connect", peer: [2] }, "peer"],
  ["route unheard of", parseToIntroducer, { ...linked, route: "tunnel" }, "route"],
  ["route inherited", parseToIntroducer, { ...linked, route: "toString" }, "route"],
  ["local no endpoint", parseToIntroducer, { ...linked, local: "here" }, "local"],
  ["remote number", parseToIntroducer, { ...linked, remote: 80 }, "remote"],
  ["reason an object", parseToIntroducer, { type: "unlinked", peer: 2, reason: {} }, "reason"],
  ["failure unheard of", parseToIntroducer, { ...failed, reason: "bored" }, "reason"],
  ["failure inherited", parseToIntroducer, { ...failed, reason: "constructor" }, "reason"],
  ["a reason that is only one's own", parseToIntroducer, { ...failed, reason: "cancelled" }, "reason"],
  [
    "a reason of one's own words",
    parseToIntroducer,
    { type: "unlinked", peer: 2, reason: "bored" },
    "reason",
  ],
  ["token too short", parseToIntroducer, { ...failed, token: token.slice(2) }, "token"],
  ["text too long", parseToIntroducer, { type: "echo", text: "x".repeat(maxTextLength + 1) }, "text"],
  ["text with lone surrogate", parseToIntroducer, { type: "echo", text: "\ud83d" }, "text"],
  ["more a number", parseToParticipant, { type: "peers", peers: [], more: 0 }, "more"],
  ["peer null", parseToParticipant, { type: "joined", peer: null }, "peer"],
  ["peer a list", parseToParticipant, { type: "joined", peer: [bob] }, "peer"],
  ["peer's name bad", parseToParticipant, { type: "joined", peer: { ...bob, name: "b b" } }, "peer.name"],
  [
    "peer's endpoint missing",
    parseToParticipant,
    { type: "joined", peer: { ...bob, public: undefined } },
    "peer.public",
  ],
  [
    "peer's candidate bad",
    parseToParticipant,
    { ...punch, peer: { ...bob, private: ["x"] } },
    "peer.private[0]",
  ],
  [
    "second peer's candidate bad",
    parseToParticipant,
    { type: "peers", peers: [bob, { ...bob, private: [bob.public, "x"] }], more: false },
    "peers[1].private[1]",
  ],
  [
    "too many links",
    parseToIntroducer,
    { ...register, links: Array(1025).fill({ peer: instance, route: "public" }) },
    "links",
  ],
  [
    "second link bad",
    parseToIntroducer,
    {
      ...register,
      links: [
        { peer: instance, route: "public" },
        { peer: instance, route: "air" },
      ],
    },
    "links[1].route",
  ],
  [
    "too many peers",
    parseToParticipant,
    { type: "peers", peers: Array(1025).fill(bob), more: true },
    "peers",
  ],
  ["role unheard of", parseToParticipant, { ...punch, role: "leader" }, "role"],
  ["start in the past", parseToParticipant, { ...punch, startInMs: -1 }, "startInMs"],
  ["start after the deadline", parseToParticipant, { ...punch, startInMs: punchDeadlineMs + 1 }, "startInMs"],
  ["refusal code unheard of", parseToParticipant, { type: "refused", code: "no", message: "" }, "code"],
  [
    "optional field null",
    parseToParticipant,
    { type: "refused", code: "limit", message: "", peer: null },
    "peer",
  ],
  [
    "optional field wrong",
    parseToParticipant,
    { type: "refused", code: "limit", message: "", request: 1 },
    "request",
  ],
];

test.each(badFields)("%s is refused by name", (_what, parse, value, names) => {
  const refusal = refusalOf(() => parse(JSON.stringify(value)));
  expect([refusal.code, refusal.fatal]).toEqual(["bad-field", false]);
  expect(refusal.message).toStartWith(`${names} must `);
  expect(refusal.message.length).toBeLessThan(200);
});

test("a number too big for a double is refused", () => {
  expect(refusalOf(() => parseLinkLine(`{"type":"ping","id":1e999}`)).message).toStartWith("id must be ");
});

test("what is just within the limits is accepted", () => {
  const candidates = tooMany.slice(1);
  const rows: [what: string, changes: Record<string, unknown>][] = [
    ["longest name", { name: "n".repeat(maxNameLength) }],
    ["name with a digit more than an id", { name: "42b" }],
    ["name in another script", { name: "Ζωή-🦊" }],
    ["longest room", { room: "r".repeat(maxRoomLength) }],
    ["room with blanks", { room: "our private room, 2nd floor" }],
    ["most candidates", { private: candidates }],
    ["no candidates", { private: [] }],
    ["a version of the future", { version: 9999 }],
  ];
  for (const [what, changes] of rows) {
    const parsed: unknown = parseToIntroducer(JSON.stringify({ ...register, ...changes }));
    expect([what, parsed]).toEqual([what, { ...register, ...changes }]);
  }
});

test("endpoints in messages become canonical, so that equal ones are ===", () => {
  const spelt = { ...register, private: ["[::ffff:10.0.0.4]:040", "[2001:DB8:0:0::7]:80"] };
  const parsed = parseToIntroducer(JSON.stringify(spelt));
  expect(parsed).toMatchObject({ private: ["10.0.0.4:40", "[2001:db8::7]:80"] });
});

test("the longest text fits a line, even when every character is escaped or three bytes long", () => {
  for (const char of ["\u0000", "\u2028", "\uffff", "€", '"']) {
    const message: LinkLine = { type: "say", id: Number.MAX_SAFE_INTEGER, text: char.repeat(maxTextLength) };
    const line = encode(message);
    expect(utf8.encode(line).length).toBeLessThanOrEqual(maxLineBytes);
    expect(parseLinkLine(line)).toEqual(message);
  }
});

test("the biggest peer fits a line", () => {
  const widest = Array.from({ length: maxCandidates }, () => at(`[${"1234:".repeat(7)}1234]:65535`));
  const peer: Peer = {
    ...bob,
    name: "€".repeat(maxNameLength),
    private: widest,
    public: widest[0]!,
    otherPublic: widest[0]!,
  };
  const line = encode({
    type: "punch",
    peer,
    role: "controlling",
    token,
    startInMs: punchDeadlineMs,
    ...onlyRound,
  });
  expect(utf8.encode(line).length).toBeLessThanOrEqual(maxLineBytes);
  expect(parseToParticipant(line)).toMatchObject({ peer });
});

const punchLine = JSON.parse(goldenToParticipant.punch[1]![1]) as Record<string, unknown>;
const registeredLine = JSON.parse(goldenToParticipant.registered[0]![1]) as Record<string, unknown>;
const measuredLine = { type: "measured", token };
const seen = "203.0.113.7:40000";

test.each<[parse: (line: string) => unknown, base: object, field: string, good: unknown[], bad: unknown[]]>([
  [parseToParticipant, punchLine, "way", ["direct", "fresh", "birthday"], ["", "relay", "toString", 1]],
  [parseToParticipant, punchLine, "round", [1, 100], [0, 101, 1.5, "1", -1]],
  [parseToParticipant, punchLine, "last", [true, false], [0, "true", null]],
  [parseToParticipant, punchLine, "deadlineMs", [1, punchDeadlineMs], [0, punchDeadlineMs + 1, -1, 1.5, "9"]],
  [parseToParticipant, punchLine, "startInMs", [0, punchDeadlineMs], [-1, punchDeadlineMs + 1]],
  [
    parseToParticipant,
    registeredLine,
    "probePorts",
    [[], [1], [1, 2, 3, 65535]],
    [[0], [65536], [1, 2, 3, 4, 5], ["7001"], 7001],
  ],
  [
    parseToParticipant,
    registeredLine,
    "alternates",
    [[], [seen, seen, seen, seen]],
    [[seen, seen, seen, seen, seen], ["203.0.113.7"], ["224.0.0.1:7"], ["0.0.0.0:7"]],
  ],
  [parseToParticipant, { type: "filtering" }, "filtering", ["dropped", "refused", "let-in"], ["open", 1]],
  [parseToParticipant, { type: "observed" }, "endpoint", [seen], ["255.255.255.255:1", "x", 1, "1.2.3.4:0"]],
  [parseToIntroducer, { type: "mapping" }, "mapping", ["unknown", "random"], ["", "symmetric", 1]],
  [parseToIntroducer, { type: "mapped" }, "endpoint", [seen], [null, "224.0.0.1:7", "203.0.113.7:0", 1]],
  [
    parseToParticipant,
    { type: "updated", id: 2 },
    "mapped",
    [seen, null],
    ["", "0.0.0.0:1", "203.0.113.7", 0, false],
  ],
  [
    parseToIntroducer,
    measuredLine,
    "prediction",
    [
      { endpoint: seen, step: 4096 },
      { endpoint: seen, step: -4096 },
      { endpoint: seen, step: 0 },
    ],
    [
      { endpoint: seen, step: 4097 },
      { endpoint: seen, step: -4097 },
      { endpoint: seen, step: 0.5 },
      { endpoint: seen },
      { step: 1 },
      { endpoint: "0.0.0.0:1", step: 1 },
      [],
      null,
      "next",
    ],
  ],
])("bounds: %p %o %s", (parse, base, field, good, bad) => {
  for (const value of good) {
    expect(parse(JSON.stringify({ ...base, [field]: value }))).toMatchObject({ [field]: value });
  }
  for (const value of bad) {
    const refusal = refusalOf(() => parse(JSON.stringify({ ...base, [field]: value })));
    expect([value, refusal.code]).toEqual([value, "bad-field"]);
    expect(refusal.message).toStartWith(field);
  }
});

test("own and theirs of a punch are predictions like any other", () => {
  for (const field of ["own", "theirs"]) {
    const bad = JSON.stringify({ ...punchLine, [field]: { endpoint: seen, step: 5000 } });
    expect(refusalOf(() => parseToParticipant(bad)).message).toStartWith(`${field}.step must be `);
  }
});

test("a peer after a change has what was told, and loses a mapped port that is closed", () => {
  const mapped = at("203.0.113.7:41000");
  const before: Peer = { ...bob, mapped };
  expect(changedPeer(bob, { mapped })).toEqual(before);
  expect(changedPeer(before, { roundTripMs: 7 })).toEqual({ ...before, roundTripMs: 7 });
  expect(changedPeer(before, { mapping: "random", mapped: null })).toEqual({ ...bob, mapping: "random" });
});

test("a list of the most peers is accepted", () => {
  const message: ToParticipant = { type: "peers", peers: Array<Peer>(1024).fill(bob), more: true };
  expect(parseToParticipant(encode(message))).toEqual(message);
});

test("every failure reason and refusal code travels", () => {
  const own: FailureReason[] = ["relay-failed", "refused", "cancelled", "introducer-lost"];
  for (const reason of Object.keys(failureReasons) as FailureReason[]) {
    if (own.includes(reason)) {
      // Each side's own business.
      const refusal = refusalOf(() => parseToIntroducer(encode({ ...failed, reason })));
      expect(refusal.message).toStartWith("reason must be one of");
    } else expect(parseToIntroducer(encode({ ...failed, reason }))).toEqual({ ...failed, reason });
  }
  for (const code of refusalCodes) {
    const message: ToParticipant = { type: "refused", code, message: "no" };
    expect(parseToParticipant(encode(message))).toEqual(message);
  }
});

// --- names -----------------------------------------------------------------------------------------------

test.each([
  ["plain", "alice", undefined],
  ["with digits", "pc-2", undefined],
  ["accented", "Zoë", undefined],
  ["emoji", "🦊", undefined],
  ["longest", "a".repeat(maxNameLength), undefined],
  ["empty", "", "1 to 64"],
  ["too long", "a".repeat(maxNameLength + 1), "1 to 64"],
  ["number", "7", "number"],
  ["number with zeros", "007", "number"],
  ["blank", "a b", "one word"],
  ["no-break space", "a\u00a0b", "one word"],
  ["tab", "a\tb", "one word"],
  ["line feed at the end", "alice\n", "one word"],
  ["escape sequence", "\x1b[31mred", "one word"],
  ["C1 control", "\x9b31m", "one word"],
  ["delete", "a\x7f", "one word"],
  ["bidi override", "a\u202eb", "one word"],
  ["zero-width space", "a\u200bb", "one word"],
  ["byte order mark", "\ufeffa", "one word"],
  ["private use", "\ue000", "one word"],
  ["lone surrogate", "\ud800", "one word"],
] satisfies [string, string, string | undefined][])("name: %s", (_what, name, problem) => {
  if (problem === undefined) expect(nameProblem(name)).toBeUndefined();
  else expect(nameProblem(name)).toContain(problem);
});

test("a numbered name is the name and a number, cut where it would be too long, and never in mid-character", () => {
  const long = "x".repeat(maxNameLength);
  const emoji = "🦊".repeat(maxNameLength / 2);
  expect([numberedName("bob", 2), numberedName("bob-2", 2)]).toEqual(["bob-2", "bob-2-2"]);
  expect(numberedName(long, 17)).toBe(`${"x".repeat(maxNameLength - 3)}-17`);
  expect(numberedName(emoji, 17)).toBe(`${"🦊".repeat(maxNameLength / 2 - 2)}-17`);
  for (const name of ["bob", "bob-2", long, emoji]) {
    expect(nameProblem(numberedName(name, 17))).toBeUndefined();
    expect(isNumberedName(numberedName(name, 17), name)).toBe(true);
  }
});

test.each([
  ["bob", "bob"],
  ["bob-", "bob"],
  ["bob-0", "bob"],
  ["bob-02", "bob"],
  ["bob-2-3", "bob"],
  ["bo-2", "bob"],
  ["eve-2", "bob"],
  ["bob-9999999", "bob"],
])("%s is no numbered name of %s", (name, wanted) => {
  expect(isNumberedName(name, wanted)).toBe(false);
});

// --- framing ---------------------------------------------------------------------------------------------

function decode(chunks: Iterable<Uint8Array>): string[] {
  const decoder = new LineDecoder();
  return [...chunks].flatMap((chunk) => [...decoder.push(chunk)]);
}

describe("the line decoder", () => {
  const lines = [`{"type":"ping","id":1}`, "", "Zoë 😀 €", "carriage return within \r the line", "last"];
  const stream = utf8.encode(`${lines[0]}\n\n${lines[2]}\r\n${lines[3]}\n${lines[4]}\r\n`);

  test("finds the same lines wherever the stream is cut", () => {
    expect(decode([stream])).toEqual(lines);
    for (let cut = 0; cut <= stream.length; cut++) {
      expect([cut, decode([stream.subarray(0, cut), stream.subarray(cut)])]).toEqual([cut, lines]);
    }
  });

  test("finds them one byte at a time, each as soon as its LF came", () => {
    const decoder = new LineDecoder();
    const found: [at: number, line: string][] = [];
    for (let index = 0; index < stream.length; index++) {
      for (const line of decoder.push(stream.subarray(index, index + 1))) found.push([index, line]);
    }
    expect(found.map(([, line]) => line)).toEqual(lines);
    const feeds = [...stream.keys()].filter((index) => stream[index] === 10);
    expect(found.map(([index]) => index)).toEqual(feeds);
    expect(decoder.pendingBytes).toBe(0);
  });

  test("holds what has no LF yet, and keeps it when the caller uses its buffer again", () => {
    const decoder = new LineDecoder();
    const buffer = utf8.encode("a\nbcd");
    expect([...decoder.push(buffer)]).toEqual(["a"]);
    expect(decoder.pendingBytes).toBe(3);
    buffer.fill(120);
    expect([...decoder.push(utf8.encode("e\n"))]).toEqual(["bcde"]);
    expect(decoder.pendingBytes).toBe(0);
  });

  test("takes only one CR from a line's end", () => {
    expect(decode([utf8.encode("a\r\r\n\r\n\rb\n")])).toEqual(["a\r", "", "\rb"]);
  });

  const longest = new Uint8Array(maxLineBytes).fill(97);
  longest[maxLineBytes - 1] = 10;
  const tooLong = new Uint8Array(maxLineBytes + 1).fill(97);
  tooLong[maxLineBytes] = 10;

  test.each([
    ["in one chunk", [maxLineBytes]],
    ["LF alone at last", [maxLineBytes - 1]],
    ["first byte alone", [1]],
    ["in thirds", [20_000, 40_000]],
  ] satisfies [string, number[]][])("%s: the longest line passes, one byte more does not", (_what, cuts) => {
    const cut = (bytes: Uint8Array) =>
      [0, ...cuts].map((from, index) => bytes.subarray(from, cuts[index] ?? bytes.length));
    expect(decode(cut(longest)).map((line) => line.length)).toEqual([maxLineBytes - 1]);
    const refusal = refusalOf(() => decode(cut(tooLong)));
    expect([refusal.code, refusal.fatal]).toEqual(["too-long", true]);
    expect(refusal.message).toContain(`${maxLineBytes} bytes`);
  });

  test("a line may be as long as allowed right after another", () => {
    const both = new Uint8Array([...longest, ...longest]);
    expect(decode([both]).length).toBe(2);
    expect(decode([both.subarray(0, maxLineBytes + 7), both.subarray(maxLineBytes + 7)]).length).toBe(2);
  });

  test.each([
    ["at once", 1 << 20],
    ["64 KiB at a time", 1 << 16],
    ["1000 bytes at a time", 1000],
    ["1 byte at a time", 1],
  ])("an attacker's 1 MB line without LF, %s, is refused and never held", (_what, step) => {
    const decoder = new LineDecoder();
    const chunk = new Uint8Array(step).fill(97);
    let sent = 0;
    let mostHeld = 0;
    const refusal = refusalOf(() => {
      for (; sent < 1 << 20; sent += step) {
        decoder.push(chunk).next();
        mostHeld = Math.max(mostHeld, decoder.pendingBytes);
      }
    });
    expect([refusal.code, refusal.fatal]).toEqual(["too-long", true]);
    expect(sent).toBeLessThan(maxLineBytes);
    expect(mostHeld).toBeLessThan(maxLineBytes);
    expect(decoder.pendingBytes).toBe(mostHeld);
  });

  test("the lines before a too long one are still delivered", () => {
    const found: string[] = [];
    const decoder = new LineDecoder();
    const chunk = utf8.encode(`one\ntwo\n${"x".repeat(maxLineBytes)}`);
    const refusal = refusalOf(() => {
      for (const line of decoder.push(chunk)) found.push(line);
    });
    expect([refusal.code, ...found]).toEqual(["too-long", "one", "two"]);
    expect(decoder.pendingBytes).toBe(0);
  });

  test.each([
    ["stray continuation byte", [0x80]],
    ["cut-off sequence", [0xe2, 0x82]],
    ["overlong slash", [0xc0, 0xaf]],
    ["surrogate in UTF-8", [0xed, 0xa0, 0x80]],
    ["beyond U+10FFFF", [0xf4, 0x90, 0x80, 0x80]],
    ["Latin-1", [0x5a, 0x6f, 0xeb]],
  ] satisfies [string, number[]][])("invalid UTF-8 is refused: %s", (_what, bytes) => {
    const refusal = refusalOf(() => decode([new Uint8Array([...bytes, 10])]));
    expect([refusal.code, refusal.fatal, refusal.message]).toEqual([
      "bad-line",
      true,
      "a line must be UTF-8",
    ]);
  });
});

// --- endpoints -------------------------------------------------------------------------------------------

test.each([
  ["IPv4", "203.0.113.7:40000", "203.0.113.7:40000"],
  ["IPv4 extremes", "255.255.255.255:65535", "255.255.255.255:65535"],
  ["IPv6", "[2001:db8::7]:40000", "[2001:db8::7]:40000"],
  ["IPv6 in full", "[2001:0db8:0000:0000:0000:0000:0000:0007]:40000", "[2001:db8::7]:40000"],
  ["IPv6 in capitals", "[2001:DB8::7]:40000", "[2001:db8::7]:40000"],
  ["longest run of zeros is shortened (RFC 5952 §4.2.3)", "[2001:0:0:1::1]:1", "[2001:0:0:1::1]:1"],
  ["first run at a tie (RFC 5952 §4.2.3)", "[2001:db8:0:0:1:0:0:1]:1", "[2001:db8::1:0:0:1]:1"],
  ["IPv6 loopback", "[0:0:0:0:0:0:0:1]:1", "[::1]:1"],
  ["IPv4-mapped", "[::ffff:203.0.113.7]:80", "203.0.113.7:80"],
  ["IPv4-mapped in hex", "[::FFFF:cb00:7107]:80", "203.0.113.7:80"],
  ["IPv4-mapped in full", "[0:0:0:0:0:ffff:203.0.113.7]:80", "203.0.113.7:80"],
  ["IPv4-mapped extremes", "[::ffff:255.0.0.255]:80", "255.0.0.255:80"],
  ["port with zeros", "10.0.0.1:00080", "10.0.0.1:80"],
  ["IPv4 leading zero", "01.2.3.4:80", undefined],
  ["IPv4 leading zero at the end", "1.2.3.04:80", undefined],
  ["mapped leading zero", "[::ffff:01.2.3.4]:80", undefined],
  ["IPv4 octet 256", "256.1.1.1:80", undefined],
  ["IPv4 of three", "1.2.3:80", undefined],
  ["IPv4 of five", "1.2.3.4.5:80", undefined],
  ["IPv4 in hex", "0x7f.0.0.1:80", undefined],
  ["IPv4 as one number", "2130706433:80", undefined],
  ["IPv4 in brackets", "[1.2.3.4]:80", undefined],
  ["IPv4 ends in a dot", "1.2.3.4.:80", undefined],
  ["IPv6 without brackets", "2001:db8::7:80", undefined],
  ["IPv6 with a zone", "[fe80::1%eth0]:80", undefined],
  ["IPv6 with two ::", "[1::2::3]:80", undefined],
  ["IPv6 of nine", "[1:2:3:4:5:6:7:8:9]:80", undefined],
  ["IPv6 of seven", "[1:2:3:4:5:6:7]:80", undefined],
  ["IPv6 group of five digits", "[12345::]:80", undefined],
  ["bracket open", "[2001:db8::7:80", undefined],
  ["bracket twice", "[[::1]]:80", undefined],
  ["brackets empty", "[]:80", undefined],
  ["host name", "localhost:80", undefined],
  ["no port", "1.2.3.4", undefined],
  ["port empty", "1.2.3.4:", undefined],
  ["port 0", "1.2.3.4:0", undefined],
  ["port 65536", "1.2.3.4:65536", undefined],
  ["port of six digits", "1.2.3.4:000080", undefined],
  ["port negative", "1.2.3.4:-1", undefined],
  ["port in hex", "1.2.3.4:0x50", undefined],
  ["port with an exponent", "1.2.3.4:1e3", undefined],
  ["blank before", " 1.2.3.4:80", undefined],
  ["blank within", "1.2.3.4: 80", undefined],
  ["line feed at the end", "1.2.3.4:80\n", undefined],
  ["nothing", "", undefined],
] satisfies [string, string, string | undefined][])("endpoint: %s", (_what, text, expected) => {
  const parsed: string | undefined = parseEndpoint(text);
  expect(parsed).toBe(expected);
});

test("splitEndpoint, formatEndpoint and parseEndpoint are inverse", () => {
  const rows: [text: string, family: 4 | 6, address: string, port: number][] = [
    ["203.0.113.7:1", 4, "203.0.113.7", 1],
    ["0.0.0.0:65535", 4, "0.0.0.0", 65535],
    ["[::]:80", 6, "::", 80],
    ["[2001:db8::7]:40000", 6, "2001:db8::7", 40000],
  ];
  for (const [text, family, address, port] of rows) {
    expect(splitEndpoint(at(text))).toEqual({ family, address, port });
    expect(formatEndpoint(address, port)).toBe(at(text));
  }
});

test("formatEndpoint throws for what is none", () => {
  const rows: [address: string, port: number][] = [
    ["1.2.3.4", 0],
    ["1.2.3.4", 65536],
    ["1.2.3.4", 80.5],
    ["1.2.3.4", NaN],
    ["localhost", 80],
    ["[::1]", 80],
    ["fe80::1%eth0", 80],
    ["", 80],
  ];
  for (const [address, port] of rows) expect(() => formatEndpoint(address, port)).toThrow(RangeError);
});

test("canonicalAddress names the family", () => {
  expect(canonicalAddress("::ffff:10.0.0.1")).toEqual({ family: 4, address: "10.0.0.1" });
  expect(canonicalAddress("2001:DB8::0")).toEqual({ family: 6, address: "2001:db8::" });
  expect(canonicalAddress("10.0.0.1:80")).toBeUndefined();
  expect(canonicalAddress("::1]/x?[")).toBeUndefined();
});

test.each([
  ["unspecified (RFC 1122 §3.2.1.3)", "0.0.0.0", "unusable"],
  ["this network (RFC 1122 §3.2.1.3)", "0.1.2.3", "unusable"],
  ["loopback (RFC 1122 §3.2.1.3)", "127.0.0.1", "loopback"],
  ["loopback, last", "127.255.255.255", "loopback"],
  ["just after loopback", "128.0.0.0", "global"],
  ["link-local (RFC 3927)", "169.254.0.1", "unusable"],
  ["just before link-local", "169.253.255.255", "global"],
  ["just after link-local", "169.255.0.0", "global"],
  ["multicast (RFC 5771)", "224.0.0.1", "unusable"],
  ["just before multicast", "223.255.255.255", "global"],
  ["reserved (RFC 1112 §4)", "240.0.0.1", "unusable"],
  ["limited broadcast (RFC 919)", "255.255.255.255", "unusable"],
  ["private 10/8 (RFC 1918)", "10.255.255.255", "private"],
  ["just after 10/8", "11.0.0.0", "global"],
  ["just before 172.16/12", "172.15.255.255", "global"],
  ["private 172.16/12 (RFC 1918)", "172.16.0.0", "private"],
  ["private 172.16/12, last", "172.31.255.255", "private"],
  ["just after 172.16/12", "172.32.0.0", "global"],
  ["private 192.168/16 (RFC 1918)", "192.168.1.1", "private"],
  ["just after 192.168/16", "192.169.0.0", "global"],
  ["just before 100.64/10", "100.63.255.255", "global"],
  ["shared, behind a CGN (RFC 6598)", "100.64.0.0", "private"],
  ["shared, last (RFC 6598)", "100.127.255.255", "private"],
  ["just after 100.64/10", "100.128.0.0", "global"],
  ["documentation, as any other (RFC 5737)", "203.0.113.7", "global"],
  ["IPv6 unspecified (RFC 4291 §2.5.2)", "::", "unusable"],
  ["IPv6 loopback (RFC 4291 §2.5.3)", "::1", "loopback"],
  ["IPv6 multicast (RFC 4291 §2.7)", "ff02::1", "unusable"],
  ["IPv6 link-local (RFC 4291 §2.5.6)", "fe80::1", "unusable"],
  ["IPv6 link-local, last", "febf::1", "unusable"],
  ["IPv6 site-local (RFC 3879)", "fec0::1", "private"],
  ["NAT64 of a global address (RFC 6052)", "64:ff9b::cb00:7107", "global"],
  ["NAT64 of a private address", "64:ff9b::c0a8:101", "private"],
  ["NAT64 of loopback", "64:ff9b::7f00:1", "unusable"],
  ["NAT64 of link-local, cloud metadata", "64:ff9b::a9fe:a9fe", "unusable"],
  ["NAT64 of a network (RFC 8215)", "64:ff9b:1::cb00:7107", "private"],
  ["6to4 of a global address (RFC 3056)", "2002:cb00:7107::1", "global"],
  ["6to4 of a private address", "2002:a00:1::", "private"],
  ["6to4 of loopback", "2002:7f00:1::1", "unusable"],
  ["IPv4-compatible loopback (RFC 4291 §2.5.5.1)", "::7f00:1", "unusable"],
  ["IPv4-compatible private", "::a00:1", "private"],
  ["IPv6 unique local (RFC 4193)", "fc00::1", "private"],
  ["IPv6 unique local, last (RFC 4193)", "fdff::1", "private"],
  ["IPv6 documentation, as any other (RFC 3849)", "2001:db8::7", "global"],
  ["short group that looks like link-local", "fe8::1", "global"],
  ["short group that looks like unique local", "fc::1", "global"],
  ["short group that looks like multicast", "ff::1", "global"],
  ["two short groups that look like unique local", "fc:a::1", "global"],
  ["two short groups that look like multicast", "ff:a:b::1", "global"],
] as const)("scope: %s", (_what, address, scope) => {
  expect(canonicalAddress(address)?.address).toBe(address);
  expect(addressScope(address)).toBe(scope);
});

test.each([
  ["private from anywhere", "10.0.0.5:40000", "203.0.113.7:40000", true],
  ["shared (RFC 6598) from anywhere", "100.64.0.5:40000", "203.0.113.7:40000", true],
  ["unique local IPv6", "[fd00::5]:40000", "203.0.113.7:40000", true],
  ["the observed address", "203.0.113.7:40000", "203.0.113.7:50000", true],
  ["global IPv6 of a host seen over IPv4", "[2001:db8::5]:40000", "203.0.113.7:40000", true],
  ["a third party's IPv4", "198.51.100.9:25", "203.0.113.7:40000", false],
  ["a third party's IPv4 seen over IPv6", "198.51.100.9:25", "[2001:db8::7]:40000", false],
  ["loopback from the outside", "127.0.0.1:22", "203.0.113.7:40000", false],
  ["IPv6 loopback from the outside", "[::1]:22", "203.0.113.7:40000", false],
  ["loopback from a LAN", "127.0.0.1:22", "192.168.1.5:40000", false],
  ["loopback from loopback", "127.0.0.1:22", "127.0.0.1:40000", true],
  ["IPv6 loopback from IPv4 loopback", "[::1]:22", "127.0.0.1:40000", true],
  ["multicast", "224.0.0.1:22", "203.0.113.7:40000", false],
  ["IPv6 link-local", "[fe80::1]:22", "203.0.113.7:40000", false],
  ["unspecified", "0.0.0.0:22", "127.0.0.1:40000", false],
] as const)("offering %s", (_what, candidate, observed, may) => {
  expect(mayOffer(at(candidate), at(observed))).toBe(may);
});

// --- text ------------------------------------------------------------------------------------------------

test.each([
  ["plain text", "hello, world", "hello, world"],
  ["other scripts", "Ζωή 漢字 עברית", "Ζωή 漢字 עברית"],
  ["emoji", "🦊", "🦊"],
  ["emoji that joiners make one", "👨‍👩‍👧‍👦 👩🏽‍💻 ❤️‍🔥", "👨‍👩‍👧‍👦 👩🏽‍💻 ❤️‍🔥"],
  ["joiners between anything else", "a\u200db\u200d🦊\u200d", "a\ufffdb\ufffd🦊\ufffd"],
  ["ESC sequence", "\x1b[2Jgone", "\ufffd[2Jgone"],
  ["title sequence", "\x1b]0;root#\x07", "\ufffd]0;root#\ufffd"],
  ["C1 CSI", "\x9b31mred", "\ufffd31mred"],
  ["NUL, backspace, delete", "a\0\b\x7f", "a\ufffd\ufffd\ufffd"],
  ["CR and LF", "a\r\nb", "a\ufffd\ufffdb"],
  ["tab", "a\tb", "a b"],
  ["bidi override", "a\u202eb\u202c", "a\ufffdb\ufffd"],
  ["bidi isolate", "a\u2066b\u2069", "a\ufffdb\ufffd"],
  ["right-to-left mark", "a\u200fb", "a\ufffdb"],
  ["zero-width space and byte order mark", "\u200b\ufeff", "\ufffd\ufffd"],
  ["line and paragraph separators", "a\u2028b\u2029c", "a\ufffdb\ufffdc"],
  ["private use", "\ue000", "\ufffd"],
  ["unassigned", "\u0378", "\ufffd"],
  ["tag characters beyond the BMP", "a\u{e0041}b", "a\ufffdb"],
])("printable: %s", (_what, text, expected) => {
  expect(printable(text)).toBe(expected);
});

test("a participant is found by id or by name", () => {
  const alice = { id: 1, name: "alice" };
  const bob = { id: 12, name: "bob" };
  const twins = [
    { id: 3, name: "eve" },
    { id: 4, name: "eve" },
  ];
  const all = new Set([alice, bob, ...twins]);
  expect(findByIdOrName(all, "12")).toBe(bob);
  expect(findByIdOrName(all, "bob")).toBe(bob);
  expect(findByIdOrName(all.values(), "alice")).toBe(alice);
  expect(findByIdOrName(all, "4")).toBe(twins[1]!);
  expect(findByIdOrName(all, "eve")).toBe("eve is ambiguous: use one of the ids 3, 4");
  for (const word of ["2", "carol", "Alice", "", "1.0", "-1", "0x1"]) {
    expect(findByIdOrName(all, word)).toBe(`nobody here is called ${word}; \`list\` shows who is`);
  }
  expect(findByIdOrName(all, "\x1b[2J")).toBe("nobody here is called \ufffd[2J; `list` shows who is");
  expect(findByIdOrName([], "alice")).toBe("nobody here is called alice; `list` shows who is");
});
