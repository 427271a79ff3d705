/** An introducer's side of homes.ts with one room at home, as a program that can be killed and stopped. */
import { Homes } from "../../native/introducer/redis/homes.ts";

const [url = "", address = "", room = ""] = process.argv.slice(2);
const rooms = new Set<string>();
const homes = new Homes(url, address, {
  rooms: () => rooms,
  counts: () => ({ participants: 1, rooms: rooms.size, firstId: 0 }),
  movedOut: (left, to) => {
    rooms.delete(left);
    console.log(`moved ${left} ${to}`);
  },
  notice: () => {},
  sharing: () => {},
});
const home = await homes.find(room);
rooms.add(room);
console.log(`${room} ${home}`);
