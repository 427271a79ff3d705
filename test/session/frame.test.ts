import { expect, setDefaultTimeout, test } from "bun:test";
import {
  decodeCount,
  decodeCredit,
  decodeHello,
  decodePurpose,
  decodeReset,
  encodeCount,
  encodeCredit,
  encodeFinish,
  encodeFrame,
  encodeHello,
  encodeOpen,
  encodeReset,
  frame,
  FrameDecoder,
  headerBytes,
  maxDataBytes,
  maxPurposeBytes,
  ProtocolError,
} from "../../native/session/frame.ts";
import { testMs } from "../patience-fixture.ts";

setDefaultTimeout(testMs);

const sessionId = "00112233445566778899aabbccddeeff";

/** What a decoder makes of chunks: one entry a frame, the pieces of `data` put together. */
function decode(chunks: Buffer[]): { type: number; stream: number; payload: string }[] {
  const frames: { type: number; stream: number; payload: string }[] = [];
  let pieces: Buffer[] = [];
  const decoder = new FrameDecoder({
    onPiece(stream, piece, at, isLast) {
      expect(at).toBe(Buffer.concat(pieces).length);
      pieces.push(Buffer.from(piece));
      if (!isLast) return;
      frames.push({ type: frame.data, stream, payload: Buffer.concat(pieces).toString("hex") });
      pieces = [];
    },
    onFrame: (type, stream, payload) => frames.push({ type, stream, payload: payload.toString("hex") }),
  });
  for (const chunk of chunks) expect(decoder.push(Buffer.from(chunk))).toBeUndefined();
  return frames;
}

const header = (type: number, length: number, stream = 1): Buffer => {
  const bytes = Buffer.alloc(headerBytes);
  bytes[0] = type;
  bytes.writeUIntBE(length, 1, 3);
  bytes.writeUInt32BE(stream, 4);
  return bytes;
};

test("frames on the wire, as frame.ts has them", () => {
  const hello = { status: 1, epoch: 2, sessionId, processed: 3 };
  const wire = {
    open: encodeOpen(1, { for: "lines" }),
    data: encodeFrame(frame.data, Buffer.from("abc"), 3),
    credit: encodeCredit(5, 65_536),
    end: encodeFrame(frame.end, Buffer.alloc(0), 7),
    reset: encodeReset(9, 2, "no"),
    finish: encodeFinish("bye"),
    ack: encodeCount(frame.ack, 2 ** 32 + 1),
    resume: encodeHello(frame.resume, hello),
  };
  expect(
    Object.fromEntries(Object.entries(wire).map(([name, bytes]) => [name, bytes.toString("hex")])),
  ).toEqual({
    open: "0100000f00000001" + Buffer.from('{"for":"lines"}').toString("hex"),
    data: "0200000300000003616263",
    credit: "030000040000000500010000",
    end: "0400000000000007",
    reset: "0500000600000009000000026e6f",
    finish: "0600000300000000627965",
    ack: "80000008000000000000000100000001",
    resume: `8300001e000000000201000000${"02"}${sessionId}0000000000000003`,
  });
  expect(decodeHello(wire.resume.subarray(headerBytes))).toEqual({ version: 2, ...hello });
  expect(decodeReset(wire.reset.subarray(headerBytes))).toEqual({ code: 2, reason: "no" });
  expect(decodeCount(wire.ack.subarray(headerBytes))).toBe(2 ** 32 + 1);
  expect(decodeCredit(wire.credit.subarray(headerBytes))).toBe(65_536);
});

test("the same frames come out, however the bytes are cut", () => {
  const bytes = Buffer.concat([
    encodeOpen(1, { for: "lines" }),
    encodeFrame(frame.data, Buffer.from("some bytes"), 1),
    encodeFrame(frame.end, Buffer.alloc(0), 1),
    encodeCount(frame.ack, 7),
    encodeFinish(""),
    encodeReset(3, 1, "why not"),
  ]);
  const whole = decode([bytes]);
  expect(whole).toHaveLength(6);
  for (let cut = 1; cut < bytes.length; cut++) {
    expect(decode([bytes.subarray(0, cut), bytes.subarray(cut)])).toEqual(whole);
  }
  expect(decode([...bytes].map((byte) => Buffer.from([byte])))).toEqual(whole);
});

test("a decoder that is stopped gives back what it has not read", () => {
  const types: number[] = [];
  const decoder = new FrameDecoder({
    onPiece: () => {},
    onFrame(type) {
      types.push(type);
      decoder.stop();
    },
  });
  const [first, second] = [encodeCount(frame.ack, 1), encodeCount(frame.start, 2)];
  const rest = decoder.push(Buffer.concat([first, second]));
  expect(rest).toEqual(second);
  expect(decoder.push(rest!)).toBeUndefined();
  expect(types).toEqual([frame.ack, frame.start]);
});

test("a reason is cut between two characters", () => {
  const { reason } = decodeReset(encodeReset(1, 0, "€".repeat(200)).subarray(headerBytes));
  expect(reason).toBe("€".repeat(85));
});

for (const [what, bytes] of Object.entries({
  "a frame of an unknown type": header(7, 0),
  "a frame of type 0": header(0, 0),
  "an unsequenced frame of an unknown type": header(0x87, 8),
  "more data than a frame may have": header(frame.data, maxDataBytes + 1),
  "the largest length there is": header(frame.data, 0xff_ffff),
  "data without a byte": header(frame.data, 0),
  "a purpose that is too long": header(frame.open, maxPurposeBytes + 1),
  "a stream without a purpose": header(frame.open, 0),
  "a credit that is too short": header(frame.credit, 3),
  "an end with something in it": header(frame.end, 1),
  "a count that is too long": header(frame.ack, 9),
  "a hello that is too short": header(frame.resume, 29),
  "a reset without a code": header(frame.reset, 3),
})) {
  test(`refused by its header alone: ${what}`, () => {
    expect(() => decode([bytes])).toThrow(ProtocolError);
  });
}

test("refused: counts beyond 2^53, credit of nothing, absurd epochs, purposes that are no JSON object", () => {
  expect(() => decodeCount(Buffer.alloc(8, 0xff))).toThrow(ProtocolError);
  expect(() => decodeCredit(Buffer.alloc(4))).toThrow(ProtocolError);
  expect(() => decodeHello(Buffer.alloc(30, 0xff))).toThrow(ProtocolError);
  for (const text of ["[]", "null", "1", '"x"', "{", "{}x", '{"a":"\xff"}']) {
    expect(() => decodePurpose(Buffer.from(text, "latin1"))).toThrow(ProtocolError);
  }
  expect(decodePurpose(Buffer.from('{"for":"lines"}\n'))).toEqual({ for: "lines" });
  expect(() => encodeOpen(1, { text: "x".repeat(maxPurposeBytes) })).toThrow(RangeError);
});
