import { createServerSupabaseClient } from '@/lib/supabase';
import { auth } from '@clerk/nextjs/server';

export async function GET() {
  const { userId } = await auth();
  if (!userId) return Response.json({ error: 'Unauthorized' }, { status: 401 });

  const supabase = await createServerSupabaseClient();

  // RLS automatically filters to this user's documents
  const { data, error } = await supabase.from('documents').select('*');

  if (error) return Response.json({ error: error.message }, { status: 500 });
  return Response.json(data);
}
