/** What the tests of the protocol share. */
import { type Endpoint, type Peer, Refusal, parseEndpoint } from "../../protocol.ts";

/** The endpoint of a literal that is already canonical. */
export function at(text: string): Endpoint {
  const parsed = parseEndpoint(text);
  if (parsed === undefined || parsed !== text) throw new Error(`not canonical: ${text}`);
  return parsed;
}

export function refusalOf(run: () => unknown): Refusal {
  try {
    run();
  } catch (error) {
    if (error instanceof Refusal) return error;
    throw error;
  }
  throw new Error("nothing was refused");
}

export const utf8 = new TextEncoder();
export const instance = "0011223344556677";
export const token = "00112233445566778899aabbccddeeff";
export const fingerprint = "ab".repeat(32);

export const bob: Peer = {
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
export const bobJson =
  `{"id":2,"name":"bob","instance":"0011223344556677","fingerprint":"${fingerprint}",` +
  `"private":["10.0.0.5:40000","[2001:db8::5]:40000"],"public":"203.0.113.7:40000",` +
  `"mapping":"endpoint-independent","roundTripMs":23,"since":1700000000000}`;
