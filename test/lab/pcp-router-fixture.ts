/**
 * A router that answers PCP as a test wants it, where a real one can't be made to: late, or with what is not true. It
 * runs in the namespace of a NAT of the lab, grants whatever is asked for, and says "listening" once it can be asked.
 *
 *   LAN_ADDRESS EXTERNAL_ADDRESS opens|lies now|told     told: it answers nobody before a line comes on standard input
 */
import { once } from "node:events";
import { gatewayPorts } from "../../native/punch/gateway.ts";

const answerBit = 0x80;
const mapBytes = 60;

/** The answer to a MAP request (RFC 6887 §11.1): what was asked for, granted. */
function grant(request: Uint8Array, external: string): Uint8Array {
  const answer = request.slice(0, mapBytes);
  answer[1]! |= answerBit;
  answer[3] = 0; // SUCCESS
  answer.fill(0, 8, 24);
  const view = new DataView(answer.buffer);
  view.setUint32(8, Math.floor(performance.now() / 1_000));
  view.setUint16(42, view.getUint16(40));
  answer.set([...new Uint8Array(10), 255, 255, ...external.split(".").map(Number)], 44);
  return answer;
}

async function nft(rules: string): Promise<void> {
  await Bun.$`nft ${rules}`.quiet();
}

if (import.meta.main) {
  const [lan, external, behaviour, when] = process.argv.slice(2) as [string, string, string, string];
  const told = when === "told" ? once(process.stdin, "data") : undefined;
  await nft(`
add table ip granted
add chain ip granted arriving { type nat hook prerouting priority dstnat; }
insert rule inet filtering forwarding ct status dnat accept
`);
  await Bun.udpSocket({
    hostname: lan,
    port: gatewayPorts.mappingPort,
    socket: {
      error() {}, // whoever asked is gone
      async data(socket, bytes, port, address) {
        const request = new Uint8Array(bytes);
        if (request.length < mapBytes || request[1] !== 1) return;
        await told;
        const asked = new DataView(request.buffer).getUint16(40);
        const rule = `add rule ip granted arriving ip daddr ${external} tcp dport ${asked} dnat to ${address}`;
        if (behaviour === "opens") await nft(rule);
        socket.send(grant(request, external), port, address);
      },
    },
  });
  console.log("listening");
}
