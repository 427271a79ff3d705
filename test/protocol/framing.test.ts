/** Lines in a stream of bytes. */
import { describe, expect, setDefaultTimeout, test } from "bun:test";
import { LineDecoder, maxLineBytes } from "../../protocol.ts";
import { refusalOf, utf8 } from "./protocol-fixture.ts";
import { testMs } from "../patience-fixture.ts";

setDefaultTimeout(testMs);

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
