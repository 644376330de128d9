export function basename(path: string, suffix?: string): string;
