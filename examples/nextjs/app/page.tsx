import { createServerSupabaseClient } from '@/lib/supabase/server';

/** Who is in my organizations: the mirror itself, with what it embeds. The schema `clerk` must be exposed for this page. */
export default async function People() {
  const { data } = await createServerSupabaseClient()
    .schema('clerk')
    .from('organization_memberships')
    .select('id, role, organizations(name), users(first_name, last_name)')
    .order('organization_id');
  return (
    <ul>
      {data?.map(({ id, role, organizations, users }) => (
        <li key={id}>{`${users.first_name} ${users.last_name}, ${role} of ${organizations.name}`}</li>
      ))}
    </ul>
  );
}
