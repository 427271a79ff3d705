/** How long tests wait for what must come. That a machine is busy is no fault, so it is far longer than anything takes. */
export const patienceMs = 30_000;
/** A whole test: what was waited for in vain is named before that. Bun has no setting for all files: each sets it for itself. */
export const testMs = 2 * patienceMs;
