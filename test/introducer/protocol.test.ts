/** What breaks the protocol: one refusal each, then closed or not. */
import { expect, setDefaultTimeout, test } from "bun:test";
import { at, Client, linkedBy, type MessageOf, registration } from "../client-fixture.ts";
import { encode, maxLineBytes, protocolVersion, type RefusalCode } from "../../protocol.ts";
import { introduce } from "./introducer-fixture.ts";
import { testMs } from "../patience-fixture.ts";

setDefaultTimeout(testMs);

const register = encode(registration("mallory"));
const longName = encode(registration("x".repeat(65)));
const loopback = [at("127.0.0.1:1")];
const beforeRegistering: [string, string | Uint8Array, RefusalCode][] = [
  ["garbage", "\u0001\u0002 hello\n", "bad-line"],
  ["bytes that are not UTF-8", new Uint8Array([255, 254, 10]), "bad-line"],
  ["HTTP", "GET / HTTP/1.1\r\nHost: x\r\n\r\n", "bad-line"],
  ["a list", "[]\n", "bad-line"],
  ["null", "null\n", "bad-line"],
  ["an unknown type", '{"type":"obey"}\n', "unknown-type"],
  ["a type of Object.prototype", '{"type":"constructor"}\n', "unknown-type"],
  ["a message before register", encode({ type: "connect", peer: 1 }), "not-registered"],
  ["an unknown version", register.replace(`"version":${protocolVersion}`, '"version":99'), "bad-version"],
  ["another version with other fields", '{"type":"register","version":0,"nick":"x"}\n', "bad-version"],
  ["no fingerprint", encode({ ...registration("mallory"), fingerprint: "" }), "bad-field"],
  ["a name too long", longName, "bad-field"],
  ["a name with an escape sequence", encode(registration("\u001b[2Jx")), "bad-field"],
  ["a room with a control character", encode(registration("mallory", "a\u009bb")), "bad-field"],
  [
    "an endpoint that is none",
    encode({ ...registration("mallory"), private: [at("999.1.1.1:80")] }),
    "bad-field",
  ],
  [
    "a multicast endpoint",
    encode({ ...registration("mallory"), private: [at("224.0.0.1:80")] }),
    "bad-field",
  ],
  [
    "too many endpoints",
    encode({ ...registration("mallory"), private: Array(11).fill(loopback[0]) }),
    "bad-field",
  ],
  ["a line too long", "x".repeat(maxLineBytes + 1), "too-long"],
  ["1 MB without LF", "x".repeat(1_000_000), "too-long"],
];

for (const [what, bytes, code] of beforeRegistering) {
  test(`before registering, ${what}: one refusal, then closed`, async () => {
    await using scene = introduce();
    using anna = await scene.join("anna");
    using mallory = new Client(scene.introducer.port);
    mallory.raw(bytes);
    mallory.raw(register); // what follows is not read any more
    await mallory.ended.promise;
    expect(mallory.seen).toMatchObject([{ type: "refused", code }]);
    expect(Buffer.byteLength(encode(mallory.seen[0]!))).toBeLessThan(512);
    await anna.settled();
    expect(anna.types()).toEqual(["registered", "peers", "echo"]);
  });
}

const afterRegistering: [string, string, Partial<MessageOf<"refused">>][] = [
  ["garbage", "}{\n", { code: "bad-line" }],
  ["an empty line", "\n", { code: "bad-line" }],
  ["an unknown type", '{"type":"obey","peer":7}\n', { code: "unknown-type", request: "obey", peer: 7 }],
  ["a second register", register, { code: "already-registered", request: "register" }],
  [
    "an introduction to oneself",
    '{"type":"connect","peer":2}\n',
    { code: "self", request: "connect", peer: 2 },
  ],
  ["an introduction to nobody", '{"type":"connect","peer":9}\n', { code: "unknown-peer", peer: 9 }],
  [
    "a peer that is no number",
    '{"type":"connect","peer":"anna"}\n',
    { code: "bad-field", request: "connect" },
  ],
  [
    "a link with nobody",
    encode({ ...linkedBy("0".repeat(32)), peer: 9 }),
    { code: "unknown-peer", request: "linked", peer: 9 },
  ],
  [
    "a link between endpoints that are none",
    `{"type":"linked","peer":1,"token":"${"0".repeat(32)}","route":"public","local":"here","remote":"there"}\n`,
    { code: "bad-field", request: "linked" },
  ],
];

for (const [what, line, refusal] of afterRegistering) {
  test(`after registering, ${what}: one refusal, and it lives on`, async () => {
    await using scene = introduce();
    using anna = await scene.join("anna");
    using mallory = await scene.join("mallory");
    mallory.raw(line);
    await mallory.settled();
    expect(mallory.seen.filter(({ type }) => type === "refused")).toMatchObject([
      { type: "refused", ...refusal },
    ]);
    await anna.settled();
    expect(anna.types()).toEqual(["registered", "peers", "joined", "echo"]);
  });
}

for (const [what, bytes] of [
  ["a line too long", "x".repeat(maxLineBytes + 1)],
  ["the 20th bad line", "}{\n".repeat(30)],
] as const) {
  test(`after registering, ${what} closes the connection, and the room learns of it`, async () => {
    await using scene = introduce();
    using anna = await scene.join("anna");
    using mallory = await scene.join("mallory");
    mallory.raw(bytes);
    await mallory.ended.promise;
    expect(mallory.seen.at(-1)?.type).toBe("refused");
    expect(await anna.next("left")).toEqual({ type: "left", id: mallory.id });
    expect(scene.events.filter(({ event }) => event === "left")).toHaveLength(1);
  });
}

test("a message that comes one byte at a time is understood", async () => {
  await using scene = introduce();
  using client = new Client(scene.introducer.port);
  for (const byte of Buffer.from(encode(registration("zoë")))) {
    client.raw(Uint8Array.of(byte));
    await new Promise((resolve) => setImmediate(resolve));
  }
  expect(await client.next("registered")).toMatchObject({ name: "zoë" });
});
