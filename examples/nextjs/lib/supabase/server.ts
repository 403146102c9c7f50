import 'server-only';
import type { Database } from '@/database.types';
import { auth } from '@clerk/nextjs/server';
import { createClient } from '@supabase/supabase-js';

/** For server components, route handlers and server actions: what it asks, the signed-in user asks. */
export function createServerSupabaseClient() {
  return createClient<Database>(
    process.env.NEXT_PUBLIC_SUPABASE_URL!,
    process.env.NEXT_PUBLIC_SUPABASE_PUBLISHABLE_KEY!,
    { accessToken: async () => (await auth()).getToken() },
  );
}
