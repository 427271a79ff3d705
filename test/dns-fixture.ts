/** A name server that knows one address for all names (RFC 1035 §4.1): for `dig`, and whoever asks as it does. */
import { type UdpTarget, udpTarget } from "./udp-fixture.ts";

export const addressOfAll = "192.0.2.53";
const headerBytes = 12;

export function nameServer(): UdpTarget {
  return udpTarget((query) => {
    // The question: labels until an empty one, then type and class.
    const end = query.indexOf(0, headerBytes) + 5;
    const answered = Buffer.from(query.subarray(0, end));
    answered.writeUInt16BE(0x8180, 2); // an answer, recursion available
    answered.writeUInt16BE(1, 6); // one answer
    answered.writeUInt32BE(0, 8); // and nothing more
    const record = Buffer.from([0xc0, headerBytes, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4]);
    return Buffer.concat([answered, record, Buffer.from(addressOfAll.split(".").map(Number))]);
  });
}

/** How `dig` asks there. It asks again, for whatever is late is lost. */
export const digOptions = (port: number): string[] => [
  ...["@127.0.0.1", "-p", String(port)],
  ...["+short", "+timeout=2", "+tries=20"],
];

/** What it got, without what it says of tries in vain. */
export const answersOf = (said: string): string[] =>
  said.split("\n").filter((line) => line !== "" && !line.startsWith(";"));

/** Prints its port. */
if (import.meta.main) console.log(nameServer().port);
